"""`python -m app COMMAND`: the operator's command line, without Flask's own commands."""

from app.commands.application import main

if __name__ == "__main__":
    main()
