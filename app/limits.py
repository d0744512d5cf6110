"""How much one caller may take, and who goes first when there is not enough for all.

Rates: a caller that asks more often than it may is told when to come back (429), before its request costs anything.
Capacity: a worker that has too much to do refuses what can wait longest (503), before it reads a body.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import threading
import time
from typing import Any, cast

from flask import Flask, current_app, request
from werkzeug.local import LocalProxy

from app import problems
from config.settings import Settings

log = logging.getLogger(__name__)

# The share of a worker's capacity up to which a route is served. What can be sent later, or is sent again anyway,
# makes room first.
EVENTS, REPORTS, HEARTBEATS = 1.0, 0.8, 0.5
# In the environ of a request that has been counted already.
COUNTED = "watchpost.counted"
# A request takes one place, and one more for each of so many bytes that it may have in memory.
PLACE_BYTES = 65536
# What gzip is taken to make of a body, until it is known.
INFLATION = 10
# The share of a worker's capacity that one caller may have, and places that it may have in any case: who sends slowly
# on many connections would otherwise have all of it.
ONE_CALLER, FEW_PLACES = 1 / 8, 16
# Refused callers come back over at most so many seconds.
LONGEST_WAIT = 120
# What is left after a second of what was seen before: that is, about ten seconds count.
FADING = 0.9
# A turn is what a worker does from one look at what is ready to the next: at least so long, and longer when it is late.
TURN_SECONDS = 0.01
LATE_SECONDS = 0.05
# How long Redis may take, and how long it is left alone after it failed.
REDIS_SECONDS = 0.2
REDIS_PAUSE = 5

# KEYS[1]; seconds between two requests, seconds of burst. Redis' own clock: hosts' clocks differ.
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local due = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0)) + ARGV[1]
local wait = due - now - ARGV[2]
if wait > 0 then return tostring(wait) end
redis.call('SET', KEYS[1], string.format('%.6f', due), 'PX', math.ceil((due - now) * 1000) + 1000)
return '0'
"""


class Rate:
    """Requests that each key may make: so many a second, and as many at once as so many seconds allow.

    The generic cell rate algorithm (ITU-T I.371): of each key only the time is kept at which it has used up nothing.
    In memory each worker counts for itself; in Redis all of them together.
    """

    def __init__(self, name: str, per_second: float, burst_seconds: float, redis: Redis | None = None) -> None:
        self._name = name
        self._spacing = 1 / per_second if per_second else 0.0
        self._burst = burst_seconds
        self._redis = redis
        # Keys of this burst's time and of the one before; older ones have nothing used up any more.
        self._due: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._turn = time.monotonic() + burst_seconds

    def take(self, key: str) -> float:
        """Count one request. Returns 0, or the seconds to wait, and then it is not counted."""
        if not self._spacing:
            return 0.0
        if self._redis is not None:
            wait = self._redis.take(f"watchpost:{self._name}:{key}", self._spacing, self._burst)
            if wait is not None:
                if wait:
                    # For `wait`, which asks nobody.
                    self._due[key] = time.monotonic() + self._burst + wait
                return wait
        now = time.monotonic()
        due = max(now, self._used(key, now)) + self._spacing
        if due - now > self._burst:
            return due - now - self._burst
        self._due[key] = due
        return 0.0

    def wait(self, key: str) -> float:
        """Seconds that this key has to wait by what this worker has counted; 0 when it need not."""
        now = time.monotonic()
        return max(0.0, self._used(key, now) + self._spacing - now - self._burst) if self._spacing else 0.0

    def _used(self, key: str, now: float) -> float:
        if now >= self._turn:
            self._before = self._due if now < self._turn + self._burst else {}
            self._due, self._turn = {}, now + self._burst
        return self._due.get(key) or self._before.get(key) or now


class Redis:
    """The rates of all workers and hosts in one place. When it is away, each worker counts for itself."""

    def __init__(self, url: str) -> None:
        import redis

        self._failures = (redis.RedisError, OSError)
        self._client = redis.Redis.from_url(url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS)
        self._script = self._client.register_script(_TAKE)
        self._away_until = 0.0

    def take(self, key: str, spacing: float, burst: float) -> float | None:
        if time.monotonic() < self._away_until:
            return None
        try:
            return float(cast(Any, self._script(keys=[key], args=[spacing, burst])))
        except self._failures as error:
            self._away_until = time.monotonic() + REDIS_PAUSE
            log.warning(
                "Redis is away: limits are counted in memory", extra={"fields": {"error": type(error).__name__}}
            )
            return None


class Capacity:
    """Places for the requests that a worker handles at a time.

    taken: places in use; many when the database is slow. When the worker itself is slow, many come before it is done
    with those that were ready: of them it takes as many as it has places.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self.taken = 0
        self._most_of_one = max(FEW_PLACES, places * ONE_CALLER)
        self._claimed: dict[str, int] = {}
        # Of this turn: when it began, how many were taken. Of this second: the same.
        self._turn_began = self._began = 0.0
        self._in_turn = self._admitted = 0
        self._is_watched = False
        self._pace = self._refused = 0.0

    def take(self, share: float, places: int, own: int = 0) -> None:
        """Take places until `give_back`. Raises Problem 503 when so large a share of them is in use.

        own: places that this request has already.
        """
        now = time.monotonic()
        if not self._is_watched:
            self._is_watched = True
            threading.Thread(target=self._watch, daemon=True).start()
        if now > self._began + 1:
            self._pace = max(self._pace * FADING, self._admitted / (now - self._began))
            self._refused *= FADING ** (now - self._began)
            self._began, self._admitted = now, 0
        most = self._places * share
        # An idle worker takes whatever comes, be it larger than its share.
        is_full = self.taken > own and self.taken + places > most
        if is_full or (not own and self._in_turn >= most and now > self._turn_began + LATE_SECONDS):
            self._refused += 1
            raise problems.overloaded(random.uniform(1, self._longest_wait(now)))  # noqa: S311
        self.taken += places
        if not own:
            self._in_turn += 1
            self._admitted += 1

    def give_back(self, places: int) -> None:
        self.taken -= places

    def claim(self, caller: str, places: int, own: int = 0) -> None:
        """Have taken places be this caller's until `disclaim`. Raises Problem 429 when so many are its own.

        own: those that it has for the same request, of which it may have one of any size.
        """
        claimed = self._claimed.get(caller, 0)
        if claimed > own and claimed + places > self._most_of_one:
            raise problems.too_many(1)
        self._claimed[caller] = claimed + places

    def disclaim(self, caller: str, places: int) -> None:
        left = self._claimed.get(caller, 0) - places
        if left > 0:
            self._claimed[caller] = left
        else:
            # With threads two of its requests may have counted as one: the second finds nothing left.
            self._claimed.pop(caller, None)

    def _longest_wait(self, now: float) -> float:
        """Seconds that it would take to serve all that was refused lately; who was, comes back spread over them.

        At the best pace lately: while there is little to do, little is served, whatever could be.
        """
        pace = max(1.0, self._pace, self._admitted / max(0.1, now - self._began))
        return min(LONGEST_WAIT, 2 + self._refused / pace)

    def _watch(self) -> None:
        """Note when turns begin, as long as requests come: it wakes when all who were ready before had their turn."""
        while True:
            self._turn_began, self._in_turn = time.monotonic(), 0
            time.sleep(TURN_SECONDS)
            if not self._in_turn:
                break
        self._is_watched = False


class Places:
    """Places that a request has until it is answered. Raises Problem 503 when there are not so many of this share."""

    def __init__(self, capacity: Capacity, share: float, number: int) -> None:
        self._capacity = capacity
        self._share = share
        self._caller = ""
        self._claimed = 0
        capacity.take(share, number)
        self._taken = number

    def __enter__(self) -> Places:
        return self

    def __exit__(self, *_: object) -> None:
        self._capacity.give_back(self._taken)
        if self._claimed:
            self._capacity.disclaim(self._caller, self._claimed)

    def claim(self, caller: str) -> None:
        """Have them be this caller's. Raises Problem 429 when it has too many."""
        self._capacity.claim(caller, self._taken)
        self._caller, self._claimed = caller, self._taken

    def grow(self, size: int) -> None:
        """Have enough of them for so many bytes. Raises Problem 429 or 503."""
        more = 1 + size // PLACE_BYTES - self._taken
        if more <= 0:
            return
        if self._claimed:
            self._capacity.claim(self._caller, more, self._claimed)
            self._claimed += more
        self._capacity.take(self._share, more, self._taken)
        self._taken += more


class Limits:
    """All limits of one worker.

    devices: requests of a device. enrollments: registrations with an enrolment. addresses: refused tokens and
    assertions of an address, so that guessing costs little; callers with a token that is known to be good never wait
    for a neighbour who has none.
    """

    def __init__(self, settings: Settings) -> None:
        redis = Redis(settings.redis_url) if settings.redis_url else None
        burst = settings.burst_seconds
        self.devices = Rate("device", settings.device_rate, burst, redis)
        self.enrollments = Rate("enrollment", settings.enrollment_rate, burst, redis)
        self.addresses = Rate("address", settings.address_rate, burst, redis)
        self.capacity = Capacity(settings.connections)
        self._proxies = settings.proxies

    def init_app(self, app: Flask) -> None:
        app.extensions["limits"] = self

    def address(self) -> str:
        """Who calls: the address that the outermost of our own proxies saw, else the other end of the connection."""
        if self._proxies:
            hops = request.headers.get("X-Forwarded-For", "").split(",")
            if len(hops) >= self._proxies:
                return _subscriber(hops[-self._proxies].strip()[:64])
        return _subscriber(request.remote_addr or "")

    def check_address(self) -> None:
        """Raises Problem 429 when this address has had too many refusals."""
        if wait := self.addresses.wait(self.address()):
            raise problems.too_many(wait)

    def count(self, device_id: str, enrollment_id: str | None) -> None:
        """Count a request of a device, or a registration with an enrolment. Raises Problem 429."""
        wait = self.devices.take(device_id) if enrollment_id is None else self.enrollments.take(enrollment_id)
        if wait:
            raise problems.too_many(wait)

    def refused(self) -> None:
        """Count a refused token or assertion against its address. Raises Problem 429 when there were too many."""
        if wait := self.addresses.take(self.address()):
            raise problems.too_many(wait)


def _subscriber(address: str) -> str:
    """Whom an address stands for: in IPv6 a subscriber has a network of 64 bits at least (RFC 6177)."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def take_places(share: float, largest: int) -> Places:
    """Take places for the current request, by what it says of its body. Raises Problem 503.

    share: of the worker's capacity, up to which it is served. largest: bytes that its route takes.
    """
    length = request.content_length
    if length is None:
        length = largest if "HTTP_TRANSFER_ENCODING" in request.environ else 0
    elif "HTTP_CONTENT_ENCODING" in request.environ:
        length *= INFLATION
    return Places(limits.capacity, share, 1 + min(length, largest) // PLACE_BYTES)


limits = cast(Limits, LocalProxy(lambda: current_app.extensions["limits"]))
