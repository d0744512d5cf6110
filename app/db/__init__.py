"""The database: the only room that knows psycopg. Statements come from `sql/`, one file each.

`db` is the database as requests may use it, `owner` as operators' commands may, `reader` as what only
reads may: it can be a standby, which is behind, so nothing is decided by what it says.
"""

from app.db.database import Database, Transaction, db, owner, reader
from app.db.errors import Conflict, DatabaseError, Denied, Unavailable
from app.db.statements import Statement, statement

__all__ = [
    "Conflict",
    "Database",
    "DatabaseError",
    "Denied",
    "Statement",
    "Transaction",
    "Unavailable",
    "db",
    "owner",
    "reader",
    "statement",
]
