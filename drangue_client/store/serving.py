"""Which agents workers serve, as they say themselves."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from drangue_client.store.database import Database
from drangue_client.store.tables import agents, now
from drangue_client.store.values import AgentRow


class Serving:
    """SqlLog's part about agents."""

    db: Database

    def register(self, rows: Sequence[AgentRow]) -> None:
        make = postgres_insert if self.db.postgres else sqlite_insert

        def work(c: Connection) -> None:
            for row in sorted(rows, key=lambda row: row.name):
                values = {"fingerprint": row.fingerprint, "summary": row.summary, "seen_at": now()}
                c.execute(
                    make(agents)
                    .values(name=row.name, **values)
                    .on_conflict_do_update(index_elements=["name"], set_=values)
                )

        self.db.run(work, durable=False)

    def agents(self) -> list[AgentRow]:
        query = select(agents).order_by(agents.c.name)
        return self.db.run(
            lambda c: [
                AgentRow(row["name"], row["fingerprint"], row["summary"], row["seen_at"])
                for row in c.execute(query).mappings()
            ]
        )
