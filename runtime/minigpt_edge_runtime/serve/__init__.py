"""An OpenAI-compatible HTTP endpoint over one model; needs the `serve` extra (starlette and uvicorn)."""
