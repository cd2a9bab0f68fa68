"""Errors as OpenAI's clients know them."""

from __future__ import annotations

from collections.abc import Mapping


class ApiError(Exception):
    """An answer that is OpenAI's error object.

    Args:
        status: HTTP's.
        message: what is wrong.
        param: the field that is.
        code: a name for programs.
        kind: OpenAI's `type`.
        headers: further HTTP headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
