"""Rate limits: how many requests a device, an enrolment or an address may send (429 above it)."""

from __future__ import annotations

import ipaddress
import logging
import time
from typing import Any, cast

from flask import Flask, current_app, request
from werkzeug.local import LocalProxy

from app.api import problems
from app.limits.admission import Admission
from config.settings import Settings

log = logging.getLogger(__name__)

# Seconds that Redis may take to answer, and seconds without a further attempt after a failure.
REDIS_SECONDS = 0.2
REDIS_PAUSE_SECONDS = 5

# KEYS[1]; ARGV: seconds that this costs, seconds of burst, 1 when it is charged in any case. Uses the clock of Redis,
# since hosts' clocks differ.
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local due = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0)) + ARGV[1]
local wait = due - now - ARGV[2]
if wait > 0 and ARGV[3] == '0' then return tostring(wait) end
redis.call('SET', KEYS[1], string.format('%.6f', due), 'PX', math.ceil((due - now) * 1000) + 1000)
return '0'
"""


class Rate:
    """Requests per second of each key, with a burst of `burst_seconds` worth of them. A large request costs several.

    The generic cell rate algorithm (ITU-T I.371): one time is kept for each key, when it has used up nothing. In memory
    each worker counts on its own; with Redis all workers count together.
    """

    def __init__(self, name: str, per_second: float, burst_seconds: float, redis: Redis | None = None) -> None:
        self._name = name
        self._spacing = 1 / per_second if per_second else 0.0
        self._burst = burst_seconds
        self._redis = redis
        # Two generations, each one burst long: a key in neither of them has used up nothing.
        self._due: dict[str, float] = {}
        self._previous: dict[str, float] = {}
        self._generation_ends = time.monotonic() + burst_seconds

    def take(self, key: str) -> float:
        """Count one request. Returns 0, or the seconds to wait; then the request is not counted."""
        if not self._spacing:
            return 0.0
        if self._redis is not None:
            wait = self._redis.take(f"watchpost:{self._name}:{key}", self._spacing, self._burst)
            if wait is not None:
                if wait:
                    # For `wait`, which asks only this worker's memory.
                    self._due[key] = time.monotonic() + self._burst + wait
                return wait
        now = time.monotonic()
        due = max(now, self._used_until(key, now)) + self._spacing
        if due - now > self._burst:
            return due - now - self._burst
        self._due[key] = due
        return 0.0

    def charge(self, key: str, cost: float) -> None:
        """Charge the cost of something that is done, in requests; the key's next requests wait for it."""
        if not self._spacing or cost <= 0:
            return
        seconds = cost * self._spacing
        if (
            self._redis is None
            or self._redis.take(f"watchpost:{self._name}:{key}", seconds, self._burst, is_charge=True) is None
        ):
            now = time.monotonic()
            self._due[key] = max(now, self._used_until(key, now)) + seconds

    def wait(self, key: str) -> float:
        """Seconds that this key has to wait according to this worker's own count; 0 when it need not."""
        now = time.monotonic()
        return max(0.0, self._used_until(key, now) + self._spacing - now - self._burst) if self._spacing else 0.0

    def _used_until(self, key: str, now: float) -> float:
        if now >= self._generation_ends:
            self._previous = self._due if now < self._generation_ends + self._burst else {}
            self._due, self._generation_ends = {}, now + self._burst
        return self._due.get(key) or self._previous.get(key) or now


class Redis:
    """The rates of all workers and hosts in one place. While Redis is away, each worker counts on its own."""

    def __init__(self, url: str) -> None:
        import redis

        self._failures = (redis.RedisError, OSError)
        self._client = redis.Redis.from_url(url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS)
        self._script = self._client.register_script(_TAKE)
        self._away_until = 0.0

    def take(self, key: str, seconds: float, burst: float, is_charge: bool = False) -> float | None:
        """Count what costs so many seconds of a rate; None while Redis is away. is_charge: whatever is left of it."""
        if time.monotonic() < self._away_until:
            return None
        try:
            return float(cast(Any, self._script(keys=[key], args=[seconds, burst, int(is_charge)])))
        except self._failures as error:
            self._away_until = time.monotonic() + REDIS_PAUSE_SECONDS
            log.warning(
                "Redis is away: limits are counted in memory", extra={"fields": {"error": type(error).__name__}}
            )
            return None


class Limits:
    """All limits of one worker.

    devices: requests of a device, apart for each priority, so that a flood of prompts holds up no compliance event.
    enrollments: registrations with an enrolment. addresses: refused tokens and assertions of an address, so that
    guessing is slow; a valid token is never refused for what its neighbours at the same address send.
    """

    def __init__(self, settings: Settings) -> None:
        redis = Redis(settings.redis_url) if settings.redis_url else None
        burst = settings.burst_seconds
        self.devices = Rate("device", settings.device_rate, burst, redis)
        self.enrollments = Rate("enrollment", settings.enrollment_rate, burst, redis)
        self.addresses = Rate("address", settings.address_rate, burst, redis)
        self.admission = Admission(settings.connections)
        self._proxies = settings.proxies

    def init_app(self, app: Flask) -> None:
        app.extensions["limits"] = self

    def address(self) -> str:
        """The caller's address: what the outermost of our own proxies saw, else the other end of the connection."""
        if self._proxies:
            hops = request.headers.get("X-Forwarded-For", "").split(",")
            if len(hops) >= self._proxies:
                return _subscriber(hops[-self._proxies].strip()[:64])
        return _subscriber(request.remote_addr or "")

    def check_address(self) -> None:
        """Raises Problem 429 when this address has had too many refusals."""
        if wait := self.addresses.wait(self.address()):
            raise problems.too_many(wait)

    def count(self, caller: str, lane: object) -> None:
        """Count a request of a caller in one of its lanes: a priority, or the token endpoint. Raises Problem 429."""
        if wait := self.devices.take(f"{caller} {lane}"):
            raise problems.too_many(wait)

    def charge(self, caller: str, lane: object, cost: float) -> None:
        """Charge a served request that cost more than one, in requests."""
        self.devices.charge(f"{caller} {lane}", cost)

    def count_registration(self, enrollment_id: str) -> None:
        """Count a registration with an enrolment. Raises Problem 429."""
        if wait := self.enrollments.take(enrollment_id):
            raise problems.too_many(wait)

    def refused(self) -> None:
        """Count a refused token or assertion against its address. Raises Problem 429 when there were too many."""
        if wait := self.addresses.take(self.address()):
            raise problems.too_many(wait)


def _subscriber(address: str) -> str:
    """The subscriber behind an address: in IPv6 a network of 64 bits at least (RFC 6177).

    address: also as some proxies write it, `IPv4:port`, `[IPv6]` or `[IPv6]:port`; the port does not count.
    """
    if address.startswith("["):
        address = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        address = address.partition(":")[0]
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


limits = cast(Limits, LocalProxy(lambda: current_app.extensions["limits"]))
