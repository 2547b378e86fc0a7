-- A text is encoded where it is accepted, to count its tokens; the worker takes what came of it instead of encoding it once more.

ALTER TABLE job_inputs ADD COLUMN encoded bytea;
COMMENT ON COLUMN job_inputs.encoded IS
    'the first 8 bytes of the SHA-256 of the tokenizer, then its ids of the prompt''s text, 4 bytes each, the lowest first; null: not encoded yet';
