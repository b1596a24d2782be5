#include "tools/config_text.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/program_options.hpp>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <set>
#include <sstream>

#include "ifaces/unique_fd.h"
#include "tools/config.h"
#include "tools/config_hints.h"

namespace espalier::tools {
namespace {

namespace po = boost::program_options;

constexpr std::size_t kMaxName = 64;  // of a conn: it is also a file name
constexpr std::string_view kSpace = " \t\r";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

std::string_view trim(std::string_view s) {
  const auto first = s.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return s.substr(first, s.find_last_not_of(kSpace) - first + 1);
}

bool printable_ascii(std::string_view s) {
  return std::all_of(s.begin(), s.end(),
                     [](char c) { return (c >= ' ' && c <= '~') || c == '\t'; });
}

bool good_conn_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxName &&
         std::isalnum(static_cast<unsigned char>(name.front())) != 0 &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' ||
                  c == '.';
         });
}

po::options_description describe(std::span<const OptionName> options) {
  po::options_description description;
  for (const OptionName& o : options)
    description.add_options()(std::string(o.name).c_str(), po::value<std::string>(),
                              std::string(o.help).c_str());
  return description;
}

std::vector<std::string_view> names(std::span<const OptionName> options) {
  std::vector<std::string_view> result;
  for (const OptionName& o : options) result.push_back(o.name);
  return result;
}

// Distance of two words where a swap of neighbours counts one (optimal string alignment).
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i)
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = a[i - 1] == b[j - 1] ? 0 : 1;
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

// One pass over the text; a section is finished when the next one begins.
class Reader {
 public:
  Reader(const std::filesystem::path& file, std::span<const OptionName> global_options,
         std::span<const OptionName> conn_options)
      : file_(file),
        global_description_(describe(global_options)),
        conn_description_(describe(conn_options)),
        global_names_(names(global_options)),
        conn_names_(names(conn_options)),
        sections_(1) {}

  std::vector<Section> read(std::string_view text) && {
    if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
    while (!text.empty()) {
      const auto end = text.find('\n');
      ++line_;
      read_line(text.substr(0, end));
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    }
    for (std::size_t i = 1; i < sections_.size(); ++i) add_defaults(sections_[i]);
    return std::move(sections_);
  }

 private:
  // What kind of section the lines belong to.
  enum class In : std::uint8_t { globals, conn, defaults, setup };

  // A conn's own setting comes before that of %default.
  void add_defaults(Section& section) const {
    const std::size_t own = section.settings.size();
    for (const Setting& s : defaults_.settings)
      if (std::none_of(section.settings.begin(),
                       section.settings.begin() + static_cast<std::ptrdiff_t>(own),
                       [&s](const Setting& mine) { return mine.name == s.name; }))
        section.settings.push_back(s);
    section.ignored.insert(section.ignored.end(), defaults_.ignored.begin(),
                           defaults_.ignored.end());
  }

  [[noreturn]] void fail(const std::string& text) const { refuse(file_, line_, text); }
  [[nodiscard]] bool in_conn() const { return in_ == In::conn || in_ == In::defaults; }
  [[nodiscard]] Section& section() { return in_ == In::defaults ? defaults_ : sections_.back(); }

  void read_line(std::string_view whole) {
    const std::string_view line = trim(whole.substr(0, whole.find('#')));
    if (line.empty()) return;
    if (!printable_ascii(line))
      fail(in_quotes(line) +
           " has bytes that are not printable ASCII; write them in a comment only");
    const std::string_view word = line.substr(0, line.find_first_of(kSpace));
    const bool setting = line.find('=') != std::string_view::npos;
    if (line.front() == '[') {
      if (line.back() != ']') fail(in_quotes(line) + " has no closing bracket; write [conn NAME]");
      read_header(trim(line.substr(1, line.size() - 2)), line);
    } else if (!setting && (word == "conn" || word == "config")) {
      read_header(line, line);
    } else if (!setting && word == "version" && sections_.size() == 1) {
      return;  // ipsec.conf's first line
    } else if (line.find('=') == std::string_view::npos) {
      fail(hint_for_line(line).value_or(in_quotes(line) +
                                        " is no setting; write NAME = VALUE, or [conn NAME]"));
    } else {
      read_setting(std::string(line));
    }
  }

  // `inside`: "conn NAME" or "config setup".
  void read_header(std::string_view inside, std::string_view line) {
    const auto space = inside.find_first_of(kSpace);
    const std::string_view kind = inside.substr(0, space);
    const std::string_view name =
        space == std::string_view::npos ? std::string_view() : trim(inside.substr(space));
    if (kind == "config" && name == "setup") {
      in_ = In::setup;
      return;
    }
    if (kind != "conn")
      fail(in_quotes(line) +
           " is no section; write [conn NAME], and global options above the first");
    if (name == "%default") {
      in_ = In::defaults;
      return;
    }
    if (!good_conn_name(name))
      fail(in_quotes(name) +
           " is no name for a conn; write 1 to 64 letters, digits, '-', '_' or '.', the first a "
           "letter or digit");
    if (!seen_.insert(std::string(name)).second)
      fail("a second [conn " + std::string(name) + "]; write another name");
    in_ = In::conn;
    sections_.push_back({std::string(name), line_, {}, {}});
  }

  void read_setting(const std::string& line) {
    std::istringstream stream(line);
    po::option option;
    try {
      auto parsed = po::parse_config_file(
          stream, in_conn() ? conn_description_ : global_description_, /*allow_unregistered=*/true);
      if (parsed.options.size() != 1 || parsed.options.front().value.size() != 1)
        fail(in_quotes(line) + " is no setting; write NAME = VALUE");
      option = std::move(parsed.options.front());
    } catch (const po::error&) {
      fail(in_quotes(line) + " is no setting; write NAME = VALUE");
    }
    if (option.string_key.empty()) fail("there is no name before '='; write NAME = VALUE");
    if (in_ == In::setup) return;  // how an IKE daemon runs
    if (option.unregistered) {
      if (!in_conn() || !is_ike_option(option.string_key)) unknown(option.string_key);
      section().ignored.push_back({option.string_key, {}, line_});  // its value may be a secret
      return;
    }
    std::string value = option.value.front();
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
      value = value.substr(1, value.size() - 2);
    if (value.empty()) fail(option.string_key + " has no value; write one, or remove the line");
    section().settings.push_back({option.string_key, std::move(value), line_});
  }

  [[noreturn]] void unknown(const std::string& name) const {
    const auto has = [&name](const std::vector<std::string_view>& known) {
      return std::find(known.begin(), known.end(), name) != known.end();
    };
    if (in_conn() && has(global_names_))
      fail(name + " is a global option; write it above the first [conn NAME]");
    if (!in_conn() && has(conn_names_))
      fail(name + " belongs to a conn; write [conn NAME] above it");
    if (const auto hint = hint_for_option(name)) fail(*hint);
    const auto& known = in_conn() ? conn_names_ : global_names_;
    const std::string_view near = nearest(name, known);
    fail("unknown option " + in_quotes(name) +
         (near.empty() ? "; remove the line" : "; write " + std::string(near)));
  }

  const std::filesystem::path& file_;
  po::options_description global_description_, conn_description_;
  std::vector<std::string_view> global_names_, conn_names_;
  std::vector<Section> sections_;
  std::set<std::string> seen_;
  unsigned line_ = 0;
  In in_ = In::globals;
  Section defaults_;
};

}  // namespace

void refuse(const std::filesystem::path& file, unsigned line, const std::string& text) {
  throw ConfigError(file.string() + ":" + std::to_string(line) + ": " + text);
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kShown = 60;
  std::string result = "'";
  for (const char c : text.substr(0, kShown)) result += c >= ' ' && c <= '~' ? c : '?';
  return result + (text.size() > kShown ? "…'" : "'");
}

std::string_view nearest(std::string_view word, std::span<const std::string_view> known) {
  constexpr std::size_t kLongest = 32;  // the work is the product of both lengths
  if (word.size() > kLongest) return {};
  std::string_view best;
  std::size_t best_distance = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const std::string_view k : known) {
    const std::size_t d = distance(word, k);
    if (d < best_distance) {
      best_distance = d;
      best = k;
    }
  }
  return best;
}

std::vector<Section> read_sections(std::string_view text, const std::filesystem::path& file,
                                   std::span<const OptionName> global_options,
                                   std::span<const OptionName> conn_options) {
  return Reader(file, global_options, conn_options).read(text);
}

std::string read_text_file(const std::filesystem::path& file, std::size_t limit) {
  const auto fail = [&file](const std::string& what) {
    throw ConfigError(file.string() + ": " + what);
  };
  // Non-blocking: opening a FIFO must not wait for its writer.
  const ifaces::UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd)
    fail("cannot be opened (" + std::string(std::strerror(errno)) +
         "); write the path of a file "
         "that this user may read");
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode))
    fail("is not a regular file; write the path of one");
  std::string text;
  std::array<char, 65536> buffer{};
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot be read (" + std::string(std::strerror(errno)) + "); check the disk");
    if (n == 0) return text;
    text.append(buffer.data(), static_cast<std::size_t>(n));
    if (text.size() > limit)
      fail("is longer than " + std::to_string(limit) + " bytes; write a shorter file");
  }
}

}  // namespace espalier::tools
