-- A schema of its own and three roles for it. Run this once, in the database that is to hold the scores, as
-- the account that the provider gave out: it must be allowed to create roles and to create in the database,
-- and need not be a superuser. Then give each role a password, for example with psql's \password.

-- Whoever changes the schema: `roc4mllm migrate`, before a rollout.
CREATE ROLE roc4mllm_migrate LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
-- The workers, and every other command.
CREATE ROLE roc4mllm_worker LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
-- Dashboards and people.
CREATE ROLE roc4mllm_read LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;

-- Only a member may give a schema to a role.
GRANT roc4mllm_migrate TO CURRENT_USER;
CREATE SCHEMA roc4mllm AUTHORIZATION roc4mllm_migrate;
REVOKE roc4mllm_migrate FROM CURRENT_USER;

DO $$
DECLARE
    role text;
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    FOREACH role IN ARRAY ARRAY['roc4mllm_migrate', 'roc4mllm_worker', 'roc4mllm_read'] LOOP
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET search_path = roc4mllm', role, current_database());
    END LOOP;
END
$$;
