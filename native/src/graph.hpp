// An exported graph in MLX.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "description.hpp"

namespace convnextv2 {

class Graph {
 public:
  // Check the file, load it, and run it once. Throws Error.
  explicit Graph(const Folder& folder);
  ~Graph();

  // pixels: uint8 (batch, height, width, 3) of a batch that was exported. Throws Error.
  Output run(std::span<const std::uint8_t> pixels, std::size_t batch) const;

  static const char* mlx_version();
  static void set_metallib(const std::filesystem::path& file);

 private:
  struct Loaded;
  std::size_t width_, height_, labels_, embedding_size_;
  std::unique_ptr<Loaded> loaded_;  // touched in the MLX thread alone
};

}  // namespace convnextv2
