"""How gunicorn serves the application: the worker and its HTTP/1.1 connections."""
