#include "tools/command.h"

#include <iostream>

#include "tools/control_client.h"

namespace espalier::tools {

namespace po = boost::program_options;

namespace {

std::optional<po::variables_map> parse(const std::vector<std::string>& words, const Usage& usage,
                                       po::options_description options,
                                       const po::options_description& hidden,
                                       const po::positional_options_description& places) {
  options.add_options()("help,h", "print this and end");
  po::options_description all;
  all.add(options).add(hidden);
  po::variables_map values;
  try {
    // No guessing: an abbreviation that is unique today may not be tomorrow.
    constexpr auto kStyle =
        po::command_line_style::default_style & ~po::command_line_style::allow_guessing;
    po::store(po::command_line_parser(words).options(all).positional(places).style(kStyle).run(),
              values);
    if (values.count("help") != 0) {
      std::cout << "usage: " << usage.line << "\n\n"
                << usage.text << "\n\n"
                << options << "\nexample:\n  " << usage.example << "\n";
      return std::nullopt;
    }
    po::notify(values);
  } catch (const po::error& e) {
    throw UsageError(e.what());
  }
  return values;
}

}  // namespace

std::optional<po::variables_map> parse_words(const std::vector<std::string>& words,
                                             const Usage& usage, po::options_description options,
                                             const char* positional) {
  po::options_description hidden;
  po::positional_options_description places;
  if (positional != nullptr) {
    hidden.add_options()(positional, po::value<std::string>());
    places.add(positional, 1);
  }
  return parse(words, usage, std::move(options), hidden, places);
}

std::optional<CommandWords> parse_free_words(const std::vector<std::string>& words,
                                             const Usage& usage, po::options_description options) {
  po::options_description hidden;
  hidden.add_options()("words", po::value<std::vector<std::string>>());
  po::positional_options_description places;
  places.add("words", -1);
  auto values = parse(words, usage, std::move(options), hidden, places);
  if (!values) return std::nullopt;
  CommandWords out;
  if (values->count("words") != 0) out.words = (*values)["words"].as<std::vector<std::string>>();
  out.options = std::move(*values);
  return out;
}

po::options_description daemon_options(Prints prints) {
  po::options_description options("options");
  if (prints == Prints::data) options.add_options()("json", "print JSON, an object a line");
  options.add_options()("control",
                        po::value<std::string>()->default_value(kDefaultControl.string()),
                        "the daemon's control socket");
  return options;
}

}  // namespace espalier::tools
