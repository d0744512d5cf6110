"""The operator's command line: `flask --app wsgi ...`.

Each command prints just the thing on standard output: a table for people, JSON with `--json`. Errors go to standard
error; the exit code is 0 when it worked, 1 when it did not, 2 when the command was called wrongly.
"""

from app.commands.audit import audit
from app.commands.browsers import browser
from app.commands.database import migrate
from app.commands.devices import device
from app.commands.enrollments import enrollment
from app.commands.erasure import erase_device, user
from app.commands.holds import hold
from app.commands.keys import keys
from app.commands.partitions import partitions
from app.commands.retention import retention
from app.commands.review import review
from app.commands.spec import spec
from app.commands.tokens import token

device.add_command(erase_device)

COMMANDS = [enrollment, device, browser, user, token, keys, migrate, partitions, retention, hold, audit, review, spec]
