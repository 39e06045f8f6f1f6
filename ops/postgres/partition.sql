-- Partitions `events` by month, so that old runs are forgotten by dropping a table instead of deleting their events one
-- by one. Optional: nothing in drangue asks for it, and `drangue prune` does without. Run it as the owner of the tables:
--
--   psql -d "$OWNER_URL" -f ops/postgres/partition.sql
--   psql -d "$ADMIN_URL" -f ops/postgres/roles.sql
--   psql -d "$OWNER_URL" -c 'select * from events_ahead(24)'
--   psql -d "$OWNER_URL" -c "select * from events_forget('2026-01-01')"
--
-- Repeating is safe. The first time it waits for every statement on `events`, and holds up those that come, while the
-- table is read once; in a quiet hour, and after `drangue migrate`.
--
-- A partition holds a range of run ids. All events of a run are in one, which keeps what the primary key and the unique
-- indexes promise, and every statement of drangue's names the run, so it reads one. Ids that drangue makes begin with
-- the milliseconds since 1970 in twelve hexadecimal digits; other ids are in `events_rest`, with what there was before.

begin;

do $$
begin
    if (select relkind from pg_class where oid = 'events'::regclass) = 'p' then
        return;
    end if;
    alter table events rename to events_rest;
    alter index events_pkey rename to events_rest_pkey;
    alter index ix_events_recorded_at rename to ix_events_rest_recorded_at;
    alter index ux_events_once rename to ux_events_rest_once;
    alter index ux_events_attempt rename to ux_events_rest_attempt;
    create table events (like events_rest including defaults) partition by range (run_id);
    alter table events add constraint events_pkey primary key (run_id, seq);
    create index ix_events_recorded_at on events using brin (recorded_at) with (autosummarize = true);
    create unique index ux_events_once on events (run_id, step, type)
        where type in ('model_decision', 'tool_result');
    create unique index ux_events_attempt on events (run_id, step, (payload ->> 'attempt'))
        where type = 'step_started';
    -- Its indexes are taken over as they are.
    alter table events attach partition events_rest default;
end
$$;

create or replace function events_first_id(month timestamp) returns text immutable language sql as $$
    select lpad(to_hex((extract(epoch from month) * 1000)::bigint), 12, '0')
$$;

-- Makes the partitions of the next months; returns the names of those that are new. Not of this one: some of its runs
-- are in `events_rest` already. Each new one makes the server read `events_rest` once, so make many while it is small.
create or replace function events_ahead(months integer) returns setof text language plpgsql as $$
declare
    month timestamp;
    name text;
begin
    for number in 1..months loop
        month := date_trunc('month', now() at time zone 'utc') + make_interval(months => number);
        name := to_char(month, '"events_"YYYY_MM');
        if to_regclass(name) is null then
            execute format(
                'create table %I partition of events for values from (%L) to (%L) with '
                '(autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02)',
                name, events_first_id(month), events_first_id(month + interval '1 month')
            );
            return next name;
        end if;
    end loop;
end
$$;

-- Forgets all runs of the months before `until`, with their events; returns the names of the partitions that are gone.
-- All or nothing: an error where one of those runs has not ended by then, is worked on, or has an outcome that nobody
-- knows. `drangue prune --archive` keeps a copy, this does not.
create or replace function events_forget(until date) returns setof text language plpgsql as $$
declare
    name text;
    month timestamp;
    first_id text;
    last_id text;
    kept text;
begin
    for name in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'events'::regclass and c.relname ~ '^events_\d{4}_\d\d$' order by 1
    loop
        month := to_timestamp(substr(name, 8), 'YYYY_MM') at time zone current_setting('timezone');
        continue when month + interval '1 month' > until;
        first_id := events_first_id(month);
        last_id := events_first_id(month + interval '1 month');
        delete from runs r
        where r.run_id >= first_id and r.run_id < last_id and r.status in ('completed', 'failed', 'cancelled')
            and r.finished_at < until and r.unknown = 0
            and not exists (select from steps s where s.run_id = r.run_id and s.claim is not null);
        select run_id into kept from runs where run_id >= first_id and run_id < last_id limit 1;
        if found then
            raise exception '% holds the run %, which has to be kept', name, kept;
        end if;
        delete from steps where run_id >= first_id and run_id < last_id;
        execute format('drop table %I', name);
        return next name;
    end loop;
end
$$;

commit;
