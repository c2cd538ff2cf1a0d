#include "description.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

namespace convnextv2 {
namespace {

using nlohmann::json;

constexpr std::uintmax_t kMaxDescriptionBytes = 16 << 20;
constexpr std::size_t kMaxInputSide = 8192;
constexpr std::size_t kMaxBatch = 4096;
constexpr std::size_t kMaxOutputs = 1 << 20;  // classes, or numbers of an embedding

// What is wrong with a description; read_folder adds the file's name.
struct Fault {
  std::string what;
};

void require(bool condition, const std::string& what) {
  if (!condition) throw Fault{what + ": export the model again"};
}

std::size_t whole_number(const json& value, std::size_t largest) {
  require(value.is_number_integer() && value >= 1 && value <= largest, "a number is missing or out of bounds");
  return value.get<std::size_t>();
}

// An output's name and the length of its rows.
std::pair<std::string, std::size_t> read_output(const json& output) {
  const auto& shape = output.at("shape");
  require(output.at("dtype") == "float32" && shape.size() == 2 && shape.at(0) == "batch",
          "an output is not a float32 (batch, n)");
  return {output.at("name").get<std::string>(), whole_number(shape.at(1), kMaxOutputs)};
}

convnextv2_preparation read_preparation(const json& preprocessing, std::size_t width, std::size_t height) {
  static const std::map<std::string, convnextv2_filter> filters = {
      {"Pillow's lanczos", CONVNEXTV2_LANCZOS}, {"Pillow's bilinear", CONVNEXTV2_BILINEAR},
      {"Pillow's bicubic", CONVNEXTV2_BICUBIC}, {"Pillow's box", CONVNEXTV2_BOX},
      {"Pillow's hamming", CONVNEXTV2_HAMMING},
  };
  convnextv2_preparation result{};
  result.crop_width = width;
  result.crop_height = height;
  const json& resize = preprocessing.at("resize");
  if (resize.is_null()) return result;
  result.resizes = 1;
  const auto filter = filters.find(resize.at("filter").get<std::string>());
  if (filter == filters.end()) {
    throw Fault{"images are resized with " + resize.at("filter").get<std::string>() +
                ", which this library does not have: resize them in the app and call the graph itself"};
  }
  result.filter = filter->second;
  const auto version = resize.at("pillow_version").get<std::string>();
  const auto [end, error] = std::from_chars(version.data(), version.data() + version.size(), result.pillow);
  require(error == std::errc() && result.pillow > 0, "Pillow's version is not understood");
  if (resize.contains("short_side")) {
    result.short_side = whole_number(resize.at("short_side"), kMaxSide);
  } else {
    result.width = whole_number(resize.at("width"), kMaxSide);
    result.height = whole_number(resize.at("height"), kMaxSide);
  }
  const json& crop = preprocessing.at("crop");
  require(crop.at("width") == width && crop.at("height") == height && crop.at("position") == "middle",
          "what is cropped is not the graph's input");
  require(crop.at("halves") == "down" || crop.at("halves") == "to even", "the crop's margins are not understood");
  result.halves_to_even = crop.at("halves") == "to even";
  return result;
}

Folder read(const json& file) {
  require(file.is_object() && file.at("format") == "mlx_convnextv2 graph",
          "it does not describe a graph of mlx_convnextv2");
  if (file.at("format_version") != 1) throw Fault{"its format is newer than this library: build the library anew"};
  Folder folder;
  Description& description = folder.description;
  description.model = file.at("model").get<std::string>();
  description.mlx_version = file.at("mlx_version").get<std::string>();
  description.device = file.at("device").get<std::string>();
  const json& stream = file.at("stream");
  require(stream.is_number_integer() && stream >= 0 && stream < 64, "its stream is out of bounds");
  description.stream = stream.get<int>();

  const json& input = file.at("input");
  const json& shape = input.at("shape");
  require(input.at("dtype") == "uint8" && input.at("layout") == "NHWC" && shape.size() == 4 && shape.at(0) == "batch",
          "its input is not uint8 in NHWC");
  if (input.at("colour") != "RGB") throw Fault{"its images are not RGB: this library takes no others"};
  require(shape.at(3) == 3, "an RGB image does not have three channels");
  description.height = whole_number(shape.at(1), kMaxInputSide);
  description.width = whole_number(shape.at(2), kMaxInputSide);
  for (const json& batch : file.at("batches")) description.batches.push_back(whole_number(batch, kMaxBatch));
  require(!description.batches.empty(), "it names no batch");
  std::sort(description.batches.begin(), description.batches.end());

  description.labels = file.at("labels").get<std::vector<std::string>>();
  const json& outputs = file.at("outputs");
  require(outputs.is_array() && (outputs.size() == 1 || outputs.size() == 2), "it does not have one or two outputs");
  require(read_output(outputs[0]) == std::pair<std::string, std::size_t>("probabilities", description.labels.size()),
          "it does not have a probability for each label");
  if (outputs.size() == 2) {
    const auto [name, size] = read_output(outputs[1]);
    require(name == "embedding", "its second output is not an embedding");
    description.embedding_size = size;
  }
  description.preparation = read_preparation(file.at("preprocessing"), description.width, description.height);

  folder.graph = file.at("graph").get<std::string>();
  require(folder.graph == folder.graph.filename(), "its graph is not in the same folder");
  folder.bytes = whole_number(file.at("bytes"), std::size_t{1} << 40);
  folder.sha256 = file.at("sha256").get<std::string>();
  return folder;
}

}  // namespace

Folder read_folder(const std::filesystem::path& path) {
  const std::filesystem::path name = path / "model.json";
  const auto bad = [&name](const std::string& why) {
    return Error(CONVNEXTV2_BAD_DESCRIPTION, name.string() + ": " + why);
  };
  std::error_code error;
  const auto size = std::filesystem::file_size(name, error);  // an error for a folder
  std::ifstream file(name, std::ios::binary);
  if (error || !file) {
    throw Error(CONVNEXTV2_NOT_FOUND, name.string() +
                                          " is not there or cannot be read: give a folder that `python -m "
                                          "mlx_convnextv2.export` wrote");
  }
  if (size > kMaxDescriptionBytes) throw bad("it is too large for a description: export the model again");
  try {
    Folder folder = read(json::parse(file));
    folder.graph = path / folder.graph;
    return folder;
  } catch (const json::exception&) {
    throw bad("it is not JSON, or a field is missing or of another type: export the model again");
  } catch (const Fault& fault) {
    throw bad(fault.what);
  }
}

}  // namespace convnextv2
