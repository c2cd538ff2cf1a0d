#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "convnextv2/classifier.hpp"

namespace convnextv2 {

// model.json, and where the graph is and what it must be.
struct Folder {
  Description description;
  std::filesystem::path graph;
  std::uintmax_t bytes = 0;
  std::string sha256;
};

// Read and check the model.json of an exported folder. Throws Error: NOT_FOUND, BAD_DESCRIPTION.
Folder read_folder(const std::filesystem::path& path);

}  // namespace convnextv2
