// convnextv2-classify: an exported model and PPM images in, labels out, as `python -m mlx_convnextv2.classify` prints
// them.

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "convnextv2.h"
#include "convnextv2/classifier.hpp"
#include "printable.hpp"

namespace {

constexpr const char* kUsage =
    "usage: convnextv2-classify [-h] [--version] [--json] [--top-k K] FOLDER IMAGE.ppm ...\n";
constexpr const char* kHelp =
    "\n"
    "Name what images show, with a folder that `python -m mlx_convnextv2.export` wrote.\n"
    "\n"
    "  FOLDER      the exported folder, with model.json and the graph\n"
    "  IMAGE.ppm   images in binary PPM (P6), sRGB\n"
    "  --json      print one line of JSON for each image\n"
    "  --top-k K   labels for each image (default: 5)\n"
    "  --version   print the version of MLX that this program runs\n"
    "\n"
    "The exit status is 0 if all images were classified, 1 if some were, 2 if none.\n";
enum Exit { kDone = 0, kSomeFailed = 1, kNothingDone = 2 };
constexpr int kBarWidth = 24;

struct Arguments {
  bool json = false;
  std::size_t top_k = 5;
  std::string folder;
  std::vector<std::string> images;
};

// The arguments, or the sentence that says what is wrong with them.
std::optional<Arguments> parse(const std::vector<std::string>& words, std::string& wrong) {
  Arguments arguments;
  std::vector<std::string> places;
  bool options = true;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (options && word == "--") {
      options = false;
    } else if (options && word == "--json") {
      arguments.json = true;
    } else if (options && word == "--top-k") {
      const std::string value = ++i < words.size() ? words[i] : "";
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), arguments.top_k);
      if (error != std::errc() || end != value.data() + value.size() || arguments.top_k == 0) {
        wrong = "--top-k takes a whole number of at least 1, not '" + value + "'";
        return std::nullopt;
      }
    } else if (options && word.size() > 1 && word[0] == '-') {
      wrong = "there is no option " + word;
      return std::nullopt;
    } else {
      places.push_back(word);
    }
  }
  if (places.size() < 2) {
    wrong = "give an exported folder and at least one image";
    return std::nullopt;
  }
  arguments.folder = places.front();
  arguments.images.assign(places.begin() + 1, places.end());
  return arguments;
}

void complain(std::string_view what) { std::cerr << "convnextv2-classify: " << convnextv2::printable(what) << "\n"; }

// Nothing was done, and why.
int refuse(std::string_view why) {
  complain("error: " + std::string(why));
  return kNothingDone;
}

std::string bar(float score) {
  static const char* const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const float part = score > 0 ? std::min(score, 1.0F) : 0.0F;  // 0 of NaN
  const int length = static_cast<int>(part * kBarWidth * 8 + 0.5F);
  std::string text;
  int columns = length / 8;
  for (int i = 0; i < columns; ++i) text += "█";
  text += eighths[length % 8];
  columns += length % 8 != 0;
  return text + std::string(static_cast<std::size_t>(std::max(kBarWidth - columns, 0)), ' ');
}

void print_table(const std::string& image, const std::vector<convnextv2::Prediction>& predictions) {
  std::cout << convnextv2::printable(image) << "\n";
  for (const auto& prediction : predictions) {
    char percent[16];
    std::snprintf(percent, sizeof percent, "%5.1f%%", 100.0 * static_cast<double>(prediction.score));
    std::cout << "  " << percent << "  " << bar(prediction.score) << "  " << convnextv2::printable(prediction.label)
              << "\n";
  }
}

void print_json(const nlohmann::ordered_json& line) {
  std::cout << line.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace) << "\n";
}

void print_json(const std::string& image, const std::vector<convnextv2::Prediction>& predictions) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const auto& prediction : predictions) {
    list.push_back({{"label", prediction.label}, {"score", prediction.score}, {"index", prediction.index}});
  }
  print_json({{"image", image}, {"predictions", list}});
}

int classify(const Arguments& arguments) {
  const convnextv2::Classifier classifier(arguments.folder);
  std::size_t failed = 0;
  for (const std::string& name : arguments.images) {
    try {
      const auto predictions = classifier.classify(convnextv2::read_ppm(name), arguments.top_k);
      arguments.json ? print_json(name, predictions) : print_table(name, predictions);
    } catch (const convnextv2::Error& error) {
      ++failed;
      complain(error.what());
      if (arguments.json) print_json({{"image", name}, {"error", error.what()}});
    }
  }
  return failed == 0 ? kDone : failed < arguments.images.size() ? kSomeFailed : kNothingDone;
}

}  // namespace

int main(int count, char** values) {
  const std::vector<std::string> words(values + 1, values + count);
  for (const std::string& word : words) {
    if (word == "-h" || word == "--help") {
      std::cout << kUsage << kHelp;
      return kDone;
    }
    if (word == "--version") {
      std::cout << "MLX " << convnextv2_mlx_version() << "\n";
      return kDone;
    }
  }
  std::string wrong;
  const auto arguments = parse(words, wrong);
  if (!arguments) {
    std::cerr << kUsage;
    return refuse(wrong);
  }
  try {
    const int status = classify(*arguments);
    std::cout.flush();
    return std::cout ? status : refuse("the output cannot be written");
  } catch (const std::exception& error) {
    return refuse(error.what());
  }
}
