"""Watchpost: records how a company uses AI tools, and shows it.

`application.create_app` wires the rooms together. This module imports nothing, since gunicorn's master imports the
package, and gevent has to patch the standard library in a worker before anything else is loaded there.
"""

__version__ = "1.1.0"
