"""The systems compared: how each is brought up between the two namespaces."""

import base64
import os
import secrets
import shutil
import subprocess

from .process import Failed, run, wait_for
from .topology import INNER, SIDES, UNDER, other


class System:
    """After start(), `target` in B answers from A, and `daemons` carry the traffic."""

    packages = ()  # of Debian, without which it cannot be had

    def __init__(self, name):
        self.name = name
        self.daemons = []
        self.target = dict(INNER)

    def start(self, topology, build):
        raise NotImplementedError

    def check(self):
        for daemon in self.daemons:
            daemon.check()


class Veth(System):
    """No tunnel: the roof."""

    def start(self, topology, build):
        self.target = dict(UNDER)


class Espalier(System):
    """Two espalierd with static keys and a VTI, seed of their mirrored configurations: keygen."""

    def __init__(self, name, encapsulation="yes", crypto="auto"):
        super().__init__(name)
        self.encapsulation = encapsulation
        self.crypto = crypto

    def start(self, topology, build):
        tools = os.path.join(build, "tools")
        for program in ("espalierd", "espalier"):
            if not os.access(os.path.join(tools, program), os.X_OK):
                raise Failed(f"{os.path.join(tools, program)} is missing: build it first")
        out = os.path.join(topology.folder, "keys")
        run([os.path.join(tools, "espalier"), "keygen", "--conn", "compare",
             "--left", UNDER["a"], "--right", UNDER["b"], "--leftsubnet", "0.0.0.0/0",
             "--rightsubnet", "0.0.0.0/0", "--mark", "5/0xffffffff", "--vti-interface", "vti01",
             "--vti-routing", "no", "--leftvti", f"{INNER['a']}/24",
             "--rightvti", f"{INNER['b']}/24", "--encapsulation", self.encapsulation,
             "--esp", "aes_gcm256", "--out", out])
        for side, gateway in zip(SIDES, ("left", "right")):
            self.daemons.append(topology.spawn(
                side, [os.path.join(tools, "espalierd"),
                       "--config", os.path.join(out, gateway, "espalier.conf"),
                       "--crypto", self.crypto,
                       "--control", os.path.join(topology.folder, f"{side}.sock")],
                private_run=True))

        def addressed():
            self.check()
            return all(topology.has_address(side, INNER[side]) for side in SIDES)
        wait_for(addressed, "espalierd did not bring its device up")


class StrongSwan(System):
    """Two charons with kernel-libipsec in place of the kernel's ESP (which it cannot do without
    UDP encapsulation), keyed by IKEv2 with a shared secret."""

    packages = ("strongswan", "charon-systemd", "libcharon-extra-plugins", "strongswan-swanctl",
                "libstrongswan-standard-plugins")
    # The first that offers a thing is taken: kernel-libipsec before kernel-netlink, and aesni, whose
    # AES-GCM costs a quarter less than openssl's here, before openssl.
    _PLUGINS = ("random nonce aesni openssl aes sha2 hmac kdf gcm kernel-libipsec kernel-netlink "
                "socket-default vici")
    _DAEMONS = ("/usr/sbin/charon-systemd", "/usr/lib/ipsec/charon")

    def start(self, topology, build):
        daemon = next((path for path in self._DAEMONS if os.access(path, os.X_OK)), None)
        if daemon is None or shutil.which("swanctl") is None:
            raise Failed("charon or swanctl is not installed")
        secret = secrets.token_hex(32)
        conf, vici, env = {}, {}, {}
        for side in SIDES:
            vici[side] = os.path.join(topology.folder, f"{side}.vici")
            conf[side] = os.path.join(topology.folder, f"swanctl-{side}.conf")
            settings = os.path.join(topology.folder, f"strongswan-{side}.conf")
            self._write(conf[side], self._connection(side, secret))
            self._write(settings, self._settings(vici[side]))
            env[side] = {"STRONGSWAN_CONF": settings}
            # The far end is reached by a policy; its own end is an ordinary address.
            topology.ip(side, "addr", "add", f"{INNER[side]}/32", "dev", "lo")
            self.daemons.append(topology.spawn(side, [daemon], env=env[side], private_run=True))
        for side in SIDES:
            self._await_socket(vici[side])
            self._swanctl(["--load-all", "--file", conf[side]], vici[side], env[side])
        self._swanctl(["--initiate", "--child", "compare", "--timeout", "8"], vici["a"], env["a"])

    @staticmethod
    def _write(path, text):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def _await_socket(self, path):
        def there():
            self.check()
            return os.path.exists(path)
        wait_for(there, "charon did not open its control socket")

    def _settings(self, socket):
        return f"""charon {{
  load_modular = no
  load = {self._PLUGINS}
  plugins {{ vici {{ socket = unix://{socket} }} }}
  filelog {{ log {{ path = stderr
    default = 0
    flush_line = yes }} }}
}}
swanctl {{ load = random openssl }}
"""

    @staticmethod
    def _connection(side, secret):
        far = other(side)
        return f"""connections {{ compare {{
  version = 2
  local_addrs = {UNDER[side]}
  remote_addrs = {UNDER[far]}
  proposals = aes256gcm16-prfsha256-ecp256
  encap = yes
  local {{ auth = psk
    id = {side} }}
  remote {{ auth = psk
    id = {far} }}
  children {{ compare {{
    local_ts = {INNER[side]}/32
    remote_ts = {INNER[far]}/32
    esp_proposals = aes256gcm16
    rekey_time = 0
    mode = tunnel }} }} }} }}
secrets {{ ike-compare {{ secret = {secret} }} }}
"""

    @staticmethod
    def _swanctl(words, socket, env):
        run(["env", *(f"{key}={value}" for key, value in env.items()), "swanctl", *words,
             "--uri", f"unix://{socket}"])


class WireguardGo(System):
    """Two wireguard-go, the user-space implementation, as Debian has it."""

    packages = ("wireguard-go", "wireguard-tools")
    _PORT = 51820

    def start(self, topology, build):
        for program in ("wireguard-go", "wg"):
            if shutil.which(program) is None:
                raise Failed(f"{program} is not installed")
        private = {side: run(["wg", "genkey"]).strip() for side in SIDES}
        for side in SIDES:
            # It picks its control socket's name by the device, hence a /run of its own.
            self.daemons.append(topology.spawn(side, ["wireguard-go", "-f", "wg0"],
                                               env={"LOG_LEVEL": "error"}, private_run=True))
        for side, daemon in zip(SIDES, self.daemons):
            far = other(side)
            path = os.path.join(topology.folder, f"wg-{side}.conf")
            with open(path, "w", encoding="ascii") as file:
                file.write(f"[Interface]\nPrivateKey = {private[side]}\nListenPort = {self._PORT}\n"
                           f"[Peer]\nPublicKey = {self._public(private[far])}\n"
                           f"AllowedIPs = {INNER[far]}/32\n"
                           f"Endpoint = {UNDER[far]}:{self._PORT}\n")
            wait_for(lambda d=daemon: d.check() or
                     os.path.exists(f"/proc/{d.pid}/root/run/wireguard/wg0.sock"),
                     "wireguard-go did not open its control socket")
            topology.inside(daemon, ["wg", "setconf", "wg0", path])
            topology.ip(side, "addr", "add", f"{INNER[side]}/24", "dev", "wg0")
            topology.ip(side, "link", "set", "wg0", "up")

    @staticmethod
    def _public(private):
        done = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True,
                              check=False)
        if done.returncode != 0 or len(base64.b64decode(done.stdout)) != 32:
            raise Failed("wg pubkey failed")
        return done.stdout.strip()


def all_systems():
    """Every system by name, in the order of the table."""
    systems = [
        Veth("veth"),
        Espalier("espalier_udp"),
        Espalier("espalier_esp", encapsulation="no"),
        Espalier("espalier_udp_ipsec_mb", crypto="ipsec-mb"),
        Espalier("espalier_udp_openssl", crypto="openssl"),
        Espalier("espalier_udp_sodium", crypto="sodium"),
        StrongSwan("strongswan_libipsec"),
        WireguardGo("wireguard_go"),
    ]
    return {system.name: system for system in systems}


MAIN_SYSTEMS = ("veth", "espalier_udp", "espalier_esp", "strongswan_libipsec", "wireguard_go")
PEERS = ("strongswan_libipsec", "wireguard_go")
