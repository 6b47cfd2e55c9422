"""A client of the 2025 training API.

    from cs336.service.client import ScalingClient

    client = ScalingClient("http://127.0.0.1:8336", api_key)
    client.loss(d_model=256, num_layers=4, num_heads=4, batch_size=128, learning_rate=1e-3, train_flops=1e15)

A request that the server did not answer, or answered by "too many", is sent again: the same configuration is never
charged twice, so nothing is lost by that.
"""

from __future__ import annotations

import time
from typing import Any

import requests

# The last of them: the answer broke off in its middle.
_UNANSWERED = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0


class ServiceError(Exception):
    """The server refused; the message is its own.

    Attributes:
        status: of HTTP: 400 the budget is spent, 404 a value is out of range, 422 key or parameter is none.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ScalingClient:
    """Asks one server with one key; not to be shared by threads.

    Args:
        url: of the server, without a path.
        api_key: from `cs336 keys add NAME`.
        patience_seconds: how long to send a request again before giving up.
        timeout_seconds: for one answer.
    """

    def __init__(
        self, url: str, api_key: str, *, patience_seconds: float = 30.0, timeout_seconds: float = 30.0
    ) -> None:
        self._url = url.rstrip("/")
        self._api_key = api_key
        self._patience_seconds = patience_seconds
        self._timeout_seconds = timeout_seconds
        self._session = requests.Session()

    def loss(
        self,
        *,
        d_model: int,
        num_layers: int,
        num_heads: int,
        batch_size: int,
        learning_rate: float,
        train_flops: float,
    ) -> float:
        """The final training loss, in nats per token; a new configuration is charged `train_flops`.

        Raises:
            ServiceError: out of range, or more than what is left of the budget.
        """
        return self._get("/loss", _configuration(locals()))["loss"]

    def provenance(
        self,
        *,
        d_model: int,
        num_layers: int,
        num_heads: int,
        batch_size: int,
        learning_rate: float,
        train_flops: float,
    ) -> dict[str, Any]:
        """Where that loss comes from, its `uncertainty` in nats, and how the surrogate was made; free."""
        return self._get("/provenance", _configuration(locals()))

    def total_flops_used(self) -> float:
        """What the key was charged so far.

        The server answers by an error before the first loss; here that is 0.
        """
        if not self.previous_runs():
            return 0.0
        return self._get("/total_flops_used", {})

    def previous_runs(self) -> list[dict[str, Any]]:
        """Configurations charged for, with their `loss`, in the order they were asked for."""
        return self._get("/previous_runs", {})["previous_runs"]

    def _get(self, path: str, query: dict[str, Any]) -> Any:
        start = time.monotonic()
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                answer = self._session.get(
                    self._url + path, params=query | {"api_key": self._api_key}, timeout=self._timeout_seconds
                )
                if answer.status_code != 429:
                    break
                problem: Exception = ServiceError(429, _message(answer))
                pause = max(pause, float(answer.headers.get("Retry-After", 0)))
            except _UNANSWERED as error:
                problem = error
            if time.monotonic() - start + pause > self._patience_seconds:
                raise problem
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if answer.status_code != 200:
            raise ServiceError(answer.status_code, _message(answer))
        return answer.json()


def _configuration(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "self"}


def _message(answer: requests.Response) -> str:
    try:
        body = answer.json()
        return str(body.get("message") or body["detail"])
    except (requests.JSONDecodeError, AttributeError, KeyError):
        return answer.text[:200]
