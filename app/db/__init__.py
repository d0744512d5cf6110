"""The database: the only room that knows psycopg. Statements come from `sql/`, one file each.

`db` is the database as requests may use it, `owner` as operators' commands may.
"""

from app.db.database import Database, db, owner
from app.db.statements import Statement, statement

__all__ = ["Database", "Statement", "db", "owner", "statement"]
