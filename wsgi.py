"""The application: for gunicorn, and for `flask --app wsgi`."""

from click import get_current_context

context = get_current_context(silent=True)
if context is not None and context.parent is None:
    # `flask --app wsgi` looks up a command that is not its own: that needs no routes, which take long to import.
    from app.commands.application import create_app
else:
    from app.application import create_app

app = create_app()
