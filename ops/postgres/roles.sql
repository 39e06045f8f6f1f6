-- The roles under which drangue's parts reach Postgres, each with what it needs and no more:
--
--   drangue_owner     owns the tables and changes them: `drangue migrate`, and nothing else
--   drangue_worker    workers: append to the log and keep the work list; can neither change nor remove an event
--   drangue_app       applications: submits, approves, talks and watches
--   drangue_operator  people at a console: as applications, and forgets old runs (`drangue prune`)
--   drangue_reader    dashboards and the exporter: reads, and that includes prompts and answers
--
-- Run it as a superuser, or as a role that may create roles and owns the database, before the first `drangue migrate`
-- and after every one:
--
--   psql -d "$ADMIN_URL" -f ops/postgres/roles.sql
--
-- Repeating is safe. Passwords come from the environment (POSTGRES_OWNER_PASSWORD, POSTGRES_WORKER_PASSWORD and so on);
-- a role whose variable is unset keeps the password it has. `-v schema=NAME` where the tables are not in `public`.
-- The server gets the passwords in clear, so it is told not to log these statements. Only a superuser may say so:
-- whoever else runs this is told, and logs them where log_statement, or a duration, says so.
-- What each role needs was found by running a fleet under it with everything refused first.

\set ON_ERROR_STOP on
\if :{?schema}
\else
\set schema public
\endif

begin;

select format('create role %I login', name)
from unnest('{drangue_owner,drangue_worker,drangue_app,drangue_operator,drangue_reader}'::text[]) as name
where not exists (select from pg_roles where rolname = name)
\gexec

-- A role that was there already and may do everything would make all of this worthless.
do $$
begin
    if exists (
        select from pg_roles
        where rolname like 'drangue\_%' and (rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls)
    ) then
        raise exception 'a role named drangue_... is a superuser, or may create roles or databases';
    end if;
end
$$;

select current_setting('is_superuser')::bool as superuser
\gset
\if :superuser
set local log_statement = 'none';
set local log_min_duration_statement = -1;
set local log_min_error_statement = 'panic';
\else
\warn 'You are no superuser: the server may log the passwords that are set now (log_statement).'
\endif

\getenv password POSTGRES_OWNER_PASSWORD
\if :{?password}
alter role drangue_owner password :'password';
\unset password
\endif
\getenv password POSTGRES_WORKER_PASSWORD
\if :{?password}
alter role drangue_worker password :'password';
\unset password
\endif
\getenv password POSTGRES_APP_PASSWORD
\if :{?password}
alter role drangue_app password :'password';
\unset password
\endif
\getenv password POSTGRES_OPERATOR_PASSWORD
\if :{?password}
alter role drangue_operator password :'password';
\unset password
\endif
\getenv password POSTGRES_READER_PASSWORD
\if :{?password}
alter role drangue_reader password :'password';
\unset password
\endif
commit;

-- In a transaction of its own, so that who was given what is logged as ever.
begin;

-- Only its members may say what becomes of the owner's tables; a superuser need not be one.
select format('grant drangue_owner to %I', current_user)
where not (select rolsuper from pg_roles where rolname = current_user)
    and not pg_has_role(current_user, 'drangue_owner', 'usage')
\gexec

select format('grant connect on database %I to %s', current_database(), string_agg(rolname, ', '))
from pg_roles
where rolname in ('drangue_owner', 'drangue_worker', 'drangue_app', 'drangue_operator', 'drangue_reader')
\gexec
revoke create on schema :"schema" from public;
grant usage, create on schema :"schema" to drangue_owner;
grant usage on schema :"schema" to drangue_worker, drangue_app, drangue_operator, drangue_reader;

-- Tables that somebody else migrated, before there was an owner.
select format('alter table %I.%I owner to drangue_owner', schemaname, tablename)
from pg_tables
where schemaname = :'schema' and tablename in ('runs', 'events', 'steps', 'agents', 'drangue_version')
    and tableowner <> 'drangue_owner'
\gexec

-- A reader that forgets itself writes nothing, and blocks nobody for long.
alter role drangue_reader set default_transaction_read_only = on;
alter role drangue_reader set statement_timeout = '30s';

select to_regclass(format('%I.events', :'schema')) is not null as migrated
\gset
\if :migrated
set local search_path to :"schema";
revoke all on runs, events, steps, agents, drangue_version
    from public, drangue_worker, drangue_app, drangue_operator, drangue_reader;


-- Workers are given runs and begin none. They append to the log; nobody but `prune` ever removes from it, and nobody
-- changes it. Steps are their work list; agents is where they say what they serve.
grant select, update on runs to drangue_worker;
grant select, insert on events to drangue_worker;
grant select, insert, update, delete on steps to drangue_worker;
grant select, insert, update on agents to drangue_worker;

-- A submission is a row; a turn, a verdict or a cancel is an event under the run's lock, which UPDATE allows. A cancel
-- takes back steps that nobody has begun, a retry makes parked ones due again. Opening a step is for workers.
grant select, insert, update on runs to drangue_app, drangue_operator;
grant select, insert on events to drangue_app, drangue_operator;
grant select, update, delete on steps to drangue_app, drangue_operator;
grant select on agents to drangue_app, drangue_operator;

-- `drangue prune` forgets runs, `drangue doctor` compares versions.
grant delete on runs, events to drangue_operator;
grant select on drangue_version to drangue_operator;

grant select on runs, events, steps, agents, drangue_version to drangue_reader;

-- Tables of later migrations, until this file knows them better. Never in effect when the log itself is made: the first
-- migration comes before this line.
alter default privileges for role drangue_owner in schema :"schema"
    grant select, insert, update, delete on tables to drangue_worker, drangue_operator;
alter default privileges for role drangue_owner in schema :"schema"
    grant select, insert, update on tables to drangue_app;
alter default privileges for role drangue_owner in schema :"schema"
    grant select on tables to drangue_reader;
alter default privileges for role drangue_owner in schema :"schema"
    grant usage on sequences to drangue_worker, drangue_app, drangue_operator;
commit;
\else
commit;
\echo 'The tables are not there yet: run `drangue migrate` as drangue_owner, and then this once more.'
\endif
