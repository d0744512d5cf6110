"""What the server uses of gevent, gunicorn and httptools beyond their documentation: a change there fails here."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from gevent import baseserver
from gevent.server import StreamServer
from gunicorn import arbiter
from gunicorn.workers import base, ggevent
from httptools import HttpParserCallbackError, HttpParserUpgrade, HttpRequestParser

from app.server import preflight
from app.server.listener import Listener
from app.server.request_parser import NotHttp
from app.server.worker import Worker


def names_in(function: Any) -> set[str]:
    return {*function.__code__.co_names, *function.__code__.co_varnames}


def test_gunicorn_gevent_worker_takes_the_server_class_from_its_module() -> None:
    assert ggevent.StreamServer is Listener
    assert "StreamServer" in names_in(ggevent.GeventWorker.run)


def test_gunicorn_gevent_worker_watches_alive_and_calls_notify_and_handle() -> None:
    assert {"alive", "notify", "handle", "close", "graceful_timeout"} <= names_in(ggevent.GeventWorker.run)
    assert list(inspect.signature(ggevent.GeventWorker.handle).parameters) == ["self", "listener", "client", "addr"]
    assert issubclass(Worker, ggevent.GeventWorker)


def test_gunicorn_gevent_worker_exits_in_notify_where_ours_must_not() -> None:
    assert "exit" in names_in(ggevent.GeventWorker.notify)
    assert "notify" in vars(base.Worker)
    assert "exit" not in names_in(base.Worker.notify)


def test_gunicorn_worker_has_the_attributes_that_ours_uses() -> None:
    assigned = names_in(base.Worker.__init__)
    assert {"age", "ppid", "nr", "max_requests", "alive", "cfg"} <= assigned
    assert "wsgi" in names_in(base.Worker.load_wsgi)
    assert "handle_abort" in names_in(base.Worker.init_signals)


def test_gunicorn_arbiter_ends_when_a_worker_can_not_boot() -> None:
    assert arbiter.Arbiter.WORKER_BOOT_ERROR == preflight.NO_START
    assert {"WORKER_BOOT_ERROR", "HaltServer"} <= names_in(arbiter.Arbiter.reap_workers)


def test_gunicorn_arbiter_has_what_the_hooks_use() -> None:
    assert isinstance(arbiter.Arbiter.WORKERS, dict)
    assert list(inspect.signature(arbiter.Arbiter.signal).parameters) == ["self", "sig", "frame"]
    order = inspect.getsource(arbiter.Arbiter.start)
    assert order.index("on_starting") < order.index("init_signals") < order.index("when_ready")


def test_gevent_server_accepts_by_do_read_as_often_as_max_accept_says() -> None:
    assert "_do_read" in names_in(baseserver.BaseServer.start_accepting)
    assert {"max_accept", "do_read", "full"} <= names_in(baseserver.BaseServer._do_read)
    assert issubclass(Listener, StreamServer)
    for name in ("do_read", "do_handle", "full", "closed", "close"):
        assert hasattr(StreamServer, name), name


def test_httptools_keeps_what_a_callback_raised() -> None:
    class Refusing:
        def on_url(self, url: bytes) -> None:
            raise NotHttp(414)

    with pytest.raises(HttpParserCallbackError) as raised:
        HttpRequestParser(Refusing()).feed_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert isinstance(raised.value.__context__, NotHttp)


def test_httptools_says_where_an_upgrade_begins() -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    with pytest.raises(HttpParserUpgrade) as raised:
        HttpRequestParser(object()).feed_data(request + b"rest")
    assert raised.value.args[0] == len(request)
