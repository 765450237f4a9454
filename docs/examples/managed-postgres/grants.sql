-- What the roles of roles.sql may do. Run this once as roc4mllm_migrate, before the first migration: it
-- holds for every table that a migration ever creates.

GRANT USAGE ON SCHEMA roc4mllm TO roc4mllm_worker, roc4mllm_read;
ALTER DEFAULT PRIVILEGES IN SCHEMA roc4mllm GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO roc4mllm_worker;
ALTER DEFAULT PRIVILEGES IN SCHEMA roc4mllm GRANT USAGE ON SEQUENCES TO roc4mllm_worker;
ALTER DEFAULT PRIVILEGES IN SCHEMA roc4mllm GRANT SELECT ON TABLES TO roc4mllm_read;
