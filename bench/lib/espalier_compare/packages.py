"""Debian packages: which are missing, and installing them without starting their services."""

import os
import shutil
import subprocess

from .process import Failed

POLICY = "/usr/sbin/policy-rc.d"


def missing(packages):
    """Those of `packages` that are not installed; none where this is no Debian."""
    if shutil.which("dpkg-query") is None:
        return []
    out = []
    for package in packages:
        done = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", package],
                              capture_output=True, text=True, check=False)
        if done.stdout != "installed":
            out.append(package)
    return out


def install(packages):
    """Installs them. A daemon of theirs must not come up by itself: it would take the ports and
    policies of this machine, so a policy against it stands while apt runs. Throws Failed."""
    ours = not os.path.exists(POLICY)
    try:
        if ours:
            with open(POLICY, "x", encoding="ascii") as file:
                file.write("#!/bin/sh\nexit 101\n")
            os.chmod(POLICY, 0o755)
        for words in (["update"], ["install", "-y", "--no-install-recommends", "-o",
                                   "DPkg::Lock::Timeout=300", *packages]):
            done = subprocess.run(["apt-get", *words], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                  env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                                  check=False)
            if done.returncode != 0:
                raise Failed(f"apt-get {words[0]}: {done.stderr.strip().splitlines()[-1:]}")
    finally:
        if ours and os.path.exists(POLICY):
            os.unlink(POLICY)
