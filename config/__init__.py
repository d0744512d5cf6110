"""Settings with default, unit and meaning; what gunicorn and logging are told."""
