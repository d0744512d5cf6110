"""The operator's command line: `flask --app wsgi ...`.

Each command prints just the thing on standard output: a table for people, JSON with `--json`. Errors go to standard
error; the exit code is 0 when it worked, 1 when it did not, 2 when the command was called wrongly.
"""

from app.commands.database import migrate
from app.commands.devices import device
from app.commands.enrollments import enrollment
from app.commands.keys import keys
from app.commands.partitions import partitions
from app.commands.spec import spec
from app.commands.tokens import token

COMMANDS = [enrollment, device, token, keys, migrate, partitions, spec]
