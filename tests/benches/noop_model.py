"""A model that costs next to nothing: one layer, sixteen wide, all weights zero, tokens are bytes."""
import json
import struct
from pathlib import Path

WIDTH, CONTEXT, VOCABULARY = 16, 256, 256


def shapes() -> dict[str, list[int]]:
    """The tensors that GPT-2's files hold, by name."""
    layer = {
        "ln_1.weight": [WIDTH], "ln_1.bias": [WIDTH], "ln_2.weight": [WIDTH], "ln_2.bias": [WIDTH],
        "attn.c_attn.weight": [WIDTH, 3 * WIDTH], "attn.c_attn.bias": [3 * WIDTH],
        "attn.c_proj.weight": [WIDTH, WIDTH], "attn.c_proj.bias": [WIDTH],
        "mlp.c_fc.weight": [WIDTH, 4 * WIDTH], "mlp.c_fc.bias": [4 * WIDTH],
        "mlp.c_proj.weight": [4 * WIDTH, WIDTH], "mlp.c_proj.bias": [WIDTH],
    }
    whole = {"wte.weight": [VOCABULARY, WIDTH], "wpe.weight": [CONTEXT, WIDTH], "ln_f.weight": [WIDTH], "ln_f.bias": [WIDTH]}
    return whole | {f"h.0.{name}": shape for name, shape in layer.items()}


def write(folder: Path) -> None:
    """Writes config.json, model.safetensors and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    header, place = {}, 0
    for name, shape in shapes().items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(place))
    config = {
        "model_type": "gpt2", "activation_function": "gelu_new", "vocab_size": VOCABULARY, "n_positions": CONTEXT,
        "n_embd": WIDTH, "n_layer": 1, "n_head": 1, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))


def tokenizer() -> dict:
    """GPT-2's alphabet of bytes, without merges."""
    printable = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte]
    rest = [chr(256 + number) for number in range(256 - len(printable))]
    alphabet = [chr(byte) for byte in printable] + rest
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {shown: number for number, shown in enumerate(alphabet)}, "merges": [],
    }
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "added_tokens": [],
        "pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model,
    }
