"""The viser server: one port, and a page for each visitor."""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import logging as stdlib_logging
import socket
import urllib.parse
from collections.abc import Callable

import viser
from absl import logging

from gphm_jax.errors import InputError
from gphm_jax.viewer.frames import Start


class Server(viser.ViserServer):
    """viser's, without its tunnel to the outside: whose face is shown is nobody else's business."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        """Never opens one."""
        return None


def check_free(host: str, port: int) -> None:
    """`InputError` where nothing can be served at this host and port."""
    if not 1 <= port <= 65535:
        raise InputError(f"--port={port}: ports are 1 to 65535")
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"--host={host} is no address of this machine ({error.strerror})") from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the server does: one that closed is gone
        try:
            probe.bind(address)
        except PermissionError as error:
            raise InputError(
                f"--port={port} is for the system's own programs: give another, as --port=8080"
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(port) from error
            raise InputError(f"--host={host} is no address of this machine ({error.strerror})") from error


def open_server(host: str, port: int, name: str, start: Start) -> Server:
    """A server at this very port whose visitors begin at `start`; `InputError` where it has been taken meanwhile."""
    # At INFO it tells of every connection.
    stdlib_logging.getLogger("websockets").setLevel(stdlib_logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):  # its banner
        server = Server(host=host, port=port, verbose=False)
    if server.get_port() != port:  # viser has gone on to the next
        server.stop()
        raise _taken(port)
    server.scene.set_up_direction("+y")
    server.initial_camera.position = start.position
    server.initial_camera.look_at = start.target
    server.initial_camera.fov = start.fov
    server.gui.configure_theme(show_logo=False, show_share_button=False, control_width="medium")
    server.gui.set_panel_label(name)
    server.gui.main_panel.dock_right()  # beside the head, not over it
    return server


def serve(server: Server, welcome: Callable[[viser.ClientHandle], Callable[[], None]]) -> None:
    """Welcomes each visitor; what `welcome` returns is called once, when that visitor has left."""
    goodbyes: dict[int, Callable[[], None]] = {}

    def leave(client: viser.ClientHandle) -> None:
        if goodbye := goodbyes.pop(client.client_id, None):
            goodbye()

    @server.on_client_connect
    def _(client: viser.ClientHandle) -> None:
        if _opened_here(server, client):
            goodbyes[client.client_id] = welcome(client)
            if client.client_id not in server.get_clients():  # it left while it was welcomed
                leave(client)

    server.on_client_disconnect(leave)


def address(host: str, port: int) -> str:
    """What to open in a browser: no browser finds a server at "all addresses" by that name."""
    if host in ("", "0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_own_page(origin: str | None, host: str | None, *, local: bool) -> bool:
    """Whether a page that connects came from this server, by its request's headers: any page may try.

    Names can be made to point at any machine while a page is open: a server that is for this machine alone, `local`,
    takes only pages under this machine's own.
    """
    if origin is None:  # no browser
        return True
    page = urllib.parse.urlsplit(origin)
    return page.netloc == host and (not local or _is_local(page.hostname or ""))


def _opened_here(server: Server, client: viser.ClientHandle) -> bool:
    try:  # viser keeps them to itself
        request = server._websock_server._live_connections[client.client_id].request
    except AttributeError:
        logging.error("this version of viser does not say whose page connects: install viser 1.1")
        return False
    except KeyError:  # it has left
        return False
    assert request is not None  # a connection that is open has asked for it
    origin, host = request.headers.get("Origin"), request.headers.get("Host")
    return is_own_page(origin, host, local=_is_local(server.get_host()))


def _is_local(host: str) -> bool:
    """Whether a host is this machine by itself, whatever name servers say."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _taken(port: int) -> InputError:
    return InputError(f"port {port} is in use: give another with --port")
