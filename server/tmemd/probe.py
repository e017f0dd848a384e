"""`python -m tmemd.probe`: the health check by its public name."""

from tmemd.app.healthcheck import main as main

if __name__ == "__main__":
    raise SystemExit(main())
