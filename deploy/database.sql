-- Run by the image of PostgreSQL when its volume is new, as the superuser.
--
-- The service logs in as a role that owns the database and is no superuser, so that row-level security holds it
-- whatever it does; CREATEROLE is for the two roles that migrations make.
\getenv password POSTGRES_PASSWORD
CREATE ROLE memory LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE memory OWNER memory;
\connect memory
CREATE EXTENSION vector;
-- The password is the service's: the superuser logs in from within the container only, by its socket.
ALTER ROLE CURRENT_USER PASSWORD NULL;
