"""Limits: rate limits for each caller (429), and admission control when a worker has too much to do (503)."""
