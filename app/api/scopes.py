"""What a token may allow."""

WRITE = ("devices:write", "browsers:write", "extension:write", "prompts:write", "compliance:write")
READ = ("devices:read", "browsers:read", "extension:read", "prompts:read", "compliance:read", "metrics:read")
REGISTER = "devices:register"
