"""`python -m app.access NAME`: a new API key, and its entry for the service."""

from app.web.access import main

if __name__ == "__main__":
    main()
