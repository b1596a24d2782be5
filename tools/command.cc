#include "tools/command.h"

#include <iostream>

namespace espalier::tools {

namespace po = boost::program_options;

std::optional<po::variables_map> parse_words(const std::vector<std::string>& words,
                                             const Usage& usage, po::options_description options,
                                             const char* positional) {
  options.add_options()("help,h", "print this and end");
  po::options_description all;
  all.add(options);
  po::positional_options_description places;
  if (positional != nullptr) {
    all.add_options()(positional, po::value<std::string>());
    places.add(positional, 1);
  }
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

}  // namespace espalier::tools
