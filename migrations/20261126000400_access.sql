-- Whoever keeps what they learned of a credential hears of each change of what it was learned from: of the account, the session,
-- the key, the membership or the project, by its id, with the commit that makes the change and whoever makes it.

CREATE FUNCTION tell_of_access() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('claimcheck_access', to_jsonb(OLD) ->> TG_ARGV[0]);
    RETURN NULL;
END
$$;

CREATE TRIGGER tell_of_access AFTER UPDATE OF role, is_active, is_service, tenant_id, project_id OR DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION tell_of_access('id');
CREATE TRIGGER tell_of_access AFTER UPDATE OF ended_at, expires_at, scopes, user_id ON sessions
    FOR EACH ROW EXECUTE FUNCTION tell_of_access('id');
-- Those that are over are deleted in chunks, and nobody keeps anything of them.
CREATE TRIGGER tell_of_access_deleted AFTER DELETE ON sessions
    FOR EACH ROW WHEN (OLD.expires_at > now()) EXECUTE FUNCTION tell_of_access('id');
-- Not the columns that count what a key is used for.
CREATE TRIGGER tell_of_access AFTER
    UPDATE OF tenant_id, project_id, user_id, scopes, models, max_tokens, expires_at, revoked_at OR DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION tell_of_access('id');
CREATE TRIGGER tell_of_access AFTER UPDATE OR DELETE ON api_key_secrets
    FOR EACH ROW EXECUTE FUNCTION tell_of_access('api_key_id');
CREATE TRIGGER tell_of_access AFTER UPDATE OR DELETE ON project_members
    FOR EACH ROW EXECUTE FUNCTION tell_of_access('user_id');
CREATE TRIGGER tell_of_access AFTER UPDATE OF archived_at, organization_id OR DELETE ON projects
    FOR EACH ROW EXECUTE FUNCTION tell_of_access('id');
