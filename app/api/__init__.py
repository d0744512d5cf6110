"""What all endpoints share: bodies, fields, problem details, the OpenAPI description."""
