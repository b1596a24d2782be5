#include "tools/config.h"

#include <utility>
#include <vector>

#include "tools/config_conn.h"
#include "tools/config_text.h"

namespace espalier::tools {
namespace {

constexpr std::size_t kMaxFile = std::size_t{1} << 20;
constexpr std::size_t kMaxConns = 4096;  // every pair of them is compared

}  // namespace

Config parse_config(std::string_view text, const std::filesystem::path& file,
                    CheckKeys check_keys_too) {
  if (text.size() > kMaxFile)
    throw ConfigError(file.string() + ": is longer than " + std::to_string(kMaxFile) +
                      " bytes; write a shorter file");
  const std::filesystem::path folder = std::filesystem::absolute(file).parent_path();
  const std::vector<Section> sections = read_sections(text, file, global_options(), conn_options());
  Config config;
  config.globals = read_globals(sections.front(), file);
  std::vector<Draft> drafts;
  for (std::size_t i = 1; i < sections.size(); ++i) {
    Draft draft = read_conn(sections[i], file, folder);
    if (draft.ignore) continue;
    for (const Setting& s : sections[i].ignored)
      config.remarks.push_back(file.string() + ":" + std::to_string(s.line) + ": " + s.name +
                               " is an option of IKE: ignored, keys come from files here");
    if (drafts.size() == kMaxConns)
      refuse(file, draft.line, "more than " + std::to_string(kMaxConns) + " conns; write fewer");
    drafts.push_back(std::move(draft));
  }
  check_together(drafts, config.globals, file);
  if (check_keys_too == CheckKeys::yes) {
    drafts = with_clients(std::move(drafts));
    check_keys(drafts, file);
  }
  for (Draft& d : drafts) config.conns.push_back(std::move(d.conn));
  return config;
}

Config load_config(const std::filesystem::path& file) {
  return parse_config(read_text_file(file, kMaxFile), file, CheckKeys::yes);
}

std::filesystem::path state_file(const Conn& conn, const Globals& globals) {
  std::filesystem::path file = conn.keys;
  file.replace_extension(".state");
  if (!globals.state_dir) return file;
  // Clients of two conns may have the same address.
  if (conn.is_client) return *globals.state_dir / file.parent_path().filename() / file.filename();
  return *globals.state_dir / file.filename();
}

}  // namespace espalier::tools
