"""The database: the only room that knows psycopg. Statements come from `sql/`, one file each."""

from app.db.database import Database, db
from app.db.statements import Statement, statement

__all__ = ["Database", "Statement", "db", "statement"]
