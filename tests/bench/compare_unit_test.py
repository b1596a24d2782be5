"""bench/compare without a packet: its command line, its figures, its table and its picture."""

import os
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMPARE = os.path.join(ROOT, "bench", "compare")
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(ROOT, "bench", "lib"))

# pylint: disable=wrong-import-position
from espalier_compare import loads, plot, report
from espalier_compare.figures import FIGURES, Results
from espalier_compare.process import Failed, Process, cpu_seconds
from espalier_compare.systems import MAIN_SYSTEMS, all_systems

# What others read from the JSON: names that must not change.
PUBLISHED = ("tcp1_gbps", "tcp4_gbps", "tcp1_gb_per_cpu_s", "udp64_kpps", "udp1300_gbps",
             "rtt_p50_us", "rtt_p99_us")


def compare(*words):
    return subprocess.run([sys.executable, COMPARE, *words], capture_output=True, text=True,
                          timeout=60, check=False)


def some_results():
    results = Results(["veth", "espalier_udp", "wireguard_go"])
    for value in (20.0, 24.0, 22.0):
        results.add("veth", {"tcp1_gbps": value, "tcp1_gb_per_cpu_s": None})
    results.add("espalier_udp", {"tcp1_gbps": 11.0, "rtt_p50_us": 61.23456})
    return results


class CommandLine(unittest.TestCase):
    def refused(self, status, expected, *words):
        done = compare(*words)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertIn(expected, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(done.stdout, "")

    def test_help_has_an_example(self):
        done = compare("--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("example:", done.stdout)

    def test_unknown_system(self):
        self.refused(2, "no such system: openvpn", "--systems", "veth,openvpn")

    def test_no_system(self):
        self.refused(2, "--systems", "--systems", ",")

    def test_unknown_option(self):
        self.refused(2, "--fast", "--fast")

    def test_repeat_out_of_range(self):
        self.refused(2, "1 to 100", "--repeat", "0")

    def test_picture_of_another_kind(self):
        self.refused(1, ".svg or .png", "--plot", "figures.gif")

    def test_folder_that_is_not_there(self):
        self.refused(1, "no such folder", "--json", "/nonexistent/figures.json")

    def test_build_that_is_not_there(self):
        if os.geteuid() != 0:
            self.refused(1, "root", "--systems", "veth")
        else:
            self.refused(1, "is missing: build it", "--systems", "veth", "--build", "/nonexistent")


class Figures(unittest.TestCase):
    def test_every_system_has_the_same_keys(self):
        out = some_results().as_json()
        self.assertEqual(list(out), ["veth", "espalier_udp", "wireguard_go"])
        keys = list(out["veth"])
        self.assertTrue(set(PUBLISHED) <= set(keys))
        for row in out.values():
            self.assertEqual(list(row), keys)
            for value in row.values():
                self.assertTrue(value is None or isinstance(value, float))
        self.assertTrue(all(value is None for value in out["wireguard_go"].values()))

    def test_median_and_spread(self):
        row = some_results().as_json()["veth"]
        self.assertEqual((row["tcp1_gbps"], row["tcp1_gbps_min"], row["tcp1_gbps_max"]), (22, 20, 24))
        self.assertIsNone(row["tcp1_gb_per_cpu_s"])

    def test_four_digits(self):
        self.assertEqual(some_results().as_json()["espalier_udp"]["rtt_p50_us"], 61.23)

    def test_ratio(self):
        results = some_results()
        self.assertEqual(results.ratio("espalier_udp", "veth", "tcp1_gbps"), 0.5)
        self.assertIsNone(results.ratio("espalier_udp", "wireguard_go", "tcp1_gbps"))
        self.assertIsNone(results.ratio("wireguard_go", "veth", "tcp1_gbps"))

    def test_a_figure_without_a_column_is_an_error(self):
        with self.assertRaises(KeyError):
            some_results().add("veth", {"tcp2_gbps": 1.0})

    def test_systems_named_in_the_report_exist(self):
        self.assertTrue(set(MAIN_SYSTEMS) <= set(all_systems()))
        self.assertTrue(set(report.PEERS) <= set(MAIN_SYSTEMS))


class Table(unittest.TestCase):
    def test_shows_median_spread_and_ratio(self):
        lines = report.table(some_results()).splitlines()
        self.assertIn("22.0 (20.0–24.0)", next(l for l in lines if l.startswith("veth")))
        ratios = lines[lines.index("ratio to veth"):]
        self.assertIn("0.500", next(l for l in ratios if l.startswith("espalier_udp")))
        self.assertNotIn("ratio to wireguard_go", lines)  # it has no figure to divide by

    def test_fits_the_width(self):
        results = Results(all_systems())
        for i, system in enumerate(results.systems):
            for value in (1000.0 * (i + 1), 2000.0, 123456.0):
                results.add(system, {figure.key: value for figure in FIGURES})
        text = report.table(results)
        self.assertLessEqual(max(map(len, text.splitlines())), report.WIDTH)
        for figure in FIGURES:
            self.assertIn(figure.title, text)

    def test_without_any_figure(self):
        self.assertNotIn("None", report.table(Results(["veth"])))


class Picture(unittest.TestCase):
    def test_is_xml_with_a_bar_per_figure(self):
        tree = ElementTree.fromstring(plot.svg(some_results(), "a <caption> & more"))
        bars = [e for e in tree.iter() if e.tag.endswith("rect")]
        self.assertEqual(len(bars), 1 + 3)  # the ground; two of TCP, one of latency
        self.assertEqual(len([e for e in tree.iter() if e.tag.endswith("line")]), 1)  # one spread


class Search(unittest.TestCase):
    """The search for the highest rate with little loss, against paths whose answer is known."""

    def search(self, path, probes=7):
        rates = []

        def blast(rate):
            rates.append(rate)
            delivered = path(rate)
            return loads.Blast(pps=delivered, packets=int(delivered), seconds=1, cpu=1,
                               offered_pps=rate, loss=1 - delivered / rate)
        best = loads.search_low_loss(blast, blast(1e6), probes)
        return best, rates

    def test_a_path_that_loses_nothing_needs_no_search(self):
        best, rates = self.search(lambda rate: rate)
        self.assertEqual((best.pps, len(rates)), (1e6, 1))

    def test_a_path_that_drops_the_rest(self):
        best, rates = self.search(lambda rate: min(rate, 80e3))
        self.assertGreater(best.pps, 72e3)
        self.assertLessEqual(best.pps, 80e3)
        self.assertLessEqual(len(rates), 8)

    def test_a_path_that_collapses_when_it_drops(self):
        best, _ = self.search(lambda rate: rate if rate <= 80e3 else 20e3)
        self.assertGreater(best.pps, 60e3)
        self.assertLessEqual(best.pps, 80e3)

    def test_a_path_that_always_loses(self):
        best, _ = self.search(lambda rate: rate * 0.9)
        self.assertIsNone(best)


class Processes(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.log = os.path.join(self.folder, "log")

    def test_processor_time_of_a_name_with_blanks_and_parentheses(self):
        program = os.path.join(self.folder, "a) b (c")
        os.symlink("/bin/sh", program)
        busy = Process([program, "-c", "while :; do :; done"], self.log)
        self.addCleanup(busy.stop)
        end = time.monotonic() + 20
        while cpu_seconds([busy]) == 0:
            self.assertLess(time.monotonic(), end)

    def test_end_is_told_with_its_last_words(self):
        ended = Process(["sh", "-c", "echo first >&2; echo the reason >&2; exit 3"], self.log)
        ended.popen.wait()
        with self.assertRaisesRegex(Failed, "ended with 3: the reason"):
            ended.check()

    def test_a_process_that_does_not_answer(self):
        silent = Process(["sleep", "60"], self.log, piped=True)
        self.addCleanup(silent.stop)
        with self.assertRaisesRegex(Failed, "no answer"):
            silent.line(0.05)

    def test_stop_ends_what_ignores_a_request(self):
        deaf = Process(["sh", "-c", "trap '' TERM; echo ready; read line"], self.log, piped=True)
        deaf.line(5)
        deaf.stop()
        self.assertFalse(deaf.alive())


if __name__ == "__main__":
    unittest.main()
