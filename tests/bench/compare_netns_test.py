"""bench/compare on real packets: every load gives its figures, and nothing is left behind.

    compare_netns_test.py BUILD

    [ A ] ──── veth, MTU 1500 ──── [ B ]        no tunnel: what is tested is the bench
"""

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMPARE = os.path.join(ROOT, "bench", "compare")
SKIPPED = 77
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(ROOT, "bench", "lib"))

# pylint: disable=wrong-import-position
from espalier_compare.figures import Results
from espalier_compare.loads import Bench, Lengths, loads
from espalier_compare.process import Failed
from espalier_compare.systems import Veth
from espalier_compare.topology import Topology

BUILD = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else ""
SHORT = Lengths(tcp=1, reverse=1, blast=0.1, probe=0.1, probes=1, rtt=0.1, idle=0.1)


def left_behind(pid):
    """Namespaces and folders of the run `pid`."""
    return ([name for name in os.listdir("/run/netns") if f"espcmp{pid}-" in name]
            if os.path.isdir("/run/netns") else [])


class Loads(unittest.TestCase):
    def setUp(self):
        self.stack = self.enterContext(contextlib.ExitStack())
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.system = Veth("veth")
        self.topology = Topology("veth", folder, self.stack)
        self.system.start(self.topology, BUILD)

    def test_every_load_gives_figures(self):
        bench = Bench(self.system, self.topology, BUILD)
        bench.await_path()
        results = Results(["veth"])
        for _, apply in loads(SHORT):
            results.add("veth", apply(bench))
        figures = results.as_json()["veth"]
        for key in ("tcp1_gbps", "tcp4_gbps", "tcp1_rev_gbps", "tcp4_rev_gbps", "udp64_kpps",
                    "udp1300_gbps", "rtt_p50_us", "rtt_p99_us", "rtt_load_p50_us"):
            self.assertGreater(figures[key], 0, key)
        self.assertLessEqual(figures["rtt_p50_us"], figures["rtt_p99_us"])
        # No daemon, hence no figure of one.
        for key in ("tcp1_gb_per_cpu_s", "tcp1_cores", "rss_mib", "rtt_cpu_us"):
            self.assertIsNone(figures[key], key)

    def test_the_rate_asked_for_is_the_rate_sent(self):
        bench = Bench(self.system, self.topology, BUILD)
        blast = bench._blast(64, 0.3, 20000)  # pylint: disable=protected-access
        self.assertAlmostEqual(blast.offered_pps, 20000, delta=1000)
        self.assertEqual(blast.loss, 0)

    def test_a_path_that_is_cut_is_reported(self):
        bench = Bench(self.system, self.topology, BUILD)
        self.topology.ip("a", "link", "set", "under", "down")
        with self.assertRaises(Failed):
            bench.await_path(0.3)


class WholeRun(unittest.TestCase):
    def start(self, *words):
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        return subprocess.Popen(
            [sys.executable, COMPARE, "--quick", "--build", BUILD, *words], text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": self.folder})

    def test_an_interrupted_run_leaves_nothing(self):
        run = self.start("--systems", "veth")
        self.addCleanup(run.stderr.close)
        for line in run.stderr:
            if "tcp1" in line:
                break
        self.assertEqual(len(left_behind(run.pid)), 2)
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGTERM)  # impatience changes nothing
        run.wait(60)
        self.assertIn(run.returncode, (130, 143))
        self.assertEqual(left_behind(run.pid), [])
        self.assertEqual(glob.glob(os.path.join(self.folder, "*")), [])

    def test_a_system_that_cannot_be_had_is_left_out(self):
        empty = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), "bench")
        os.mkdir(empty)
        for program in ("espalier_rr", "espalier_udpblast"):
            os.symlink(os.path.join(BUILD, "bench", program), os.path.join(empty, program))
        out = os.path.join(os.path.dirname(empty), "figures.json")
        run = self.start("--systems", "espalier_udp", "--build", os.path.dirname(empty),
                         "--json", out)
        _, said = run.communicate(timeout=60)
        self.assertEqual(run.returncode, 0, said)
        self.assertIn("espalier_udp: left out: ", said)
        with open(out, encoding="utf-8") as file:
            self.assertIn('"tcp1_gbps": null', file.read())
        self.assertEqual(left_behind(run.pid), [])


def reason_to_skip():
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    for program in ("ip", "iperf3", "nsenter"):
        if shutil.which(program) is None:
            return f"needs {program}"
    return None


if __name__ == "__main__":
    WHY = reason_to_skip()
    if WHY:
        print(f"skipped: {WHY}")
        sys.exit(SKIPPED)
    unittest.main()
