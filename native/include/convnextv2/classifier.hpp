// An exported ConvNeXt V2 classifier: a folder and images in, labels out.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "convnextv2/image.hpp"

namespace convnextv2 {

struct Prediction {
  std::size_t index;
  std::string label;
  float score;  // the probability, 0 to 1
};

// What the graph says of N images.
struct Output {
  std::vector<float> probabilities;  // (N, labels)
  std::vector<float> embeddings;     // (N, embedding_size), empty where the graph was exported without --features
};

// What model.json says.
struct Description {
  std::string model;
  std::string mlx_version;
  std::string device;  // "cpu", "metal" or "cuda"
  int stream = 0;
  std::size_t width = 0;
  std::size_t height = 0;
  std::vector<std::size_t> batches;  // ascending
  std::size_t embedding_size = 0;
  std::vector<std::string> labels;
  convnextv2_preparation preparation{};
};

// Where an app keeps MLX's GPU kernels, the file mlx.metallib, when not beside libmlx.dylib: Contents/Resources of a
// signed app. Called before anything else here; without Metal it has no effect. Throws Error: NOT_FOUND.
CONVNEXTV2_API void set_metallib(const std::filesystem::path& file);

// Safe from any thread: MLX runs in a thread of the library's own, one call at a time. One that was moved from can only
// be destroyed or assigned to.
class CONVNEXTV2_API Classifier {
 public:
  // Open a folder that `python -m mlx_convnextv2.export` wrote: its version, device and checksum are checked before MLX
  // reads the graph, which then runs once so that the first image is fast. A process that uses MLX for something else
  // too opens its classifier first, or gets STREAM_TAKEN. Throws Error.
  explicit Classifier(const std::filesystem::path& folder);
  ~Classifier();
  Classifier(Classifier&&) noexcept;
  Classifier& operator=(Classifier&&) noexcept;

  const Description& description() const noexcept;

  // The labels of each image, the most probable first. Any number of images: they are grouped into the batches that
  // were exported. Throws Error: BAD_IMAGE, INVALID_ARGUMENT, FAILED.
  std::vector<Prediction> classify(const Image& image, std::size_t top_k = 5) const;
  std::vector<std::vector<Prediction>> classify(std::span<const convnextv2_image> images, std::size_t top_k = 5) const;

  // The graph itself, for images that are prepared already. shape: (N, H, W, 3). Throws Error: WRONG_SHAPE for a shape
  // that was not exported, INVALID_ARGUMENT where pixels are more or fewer, FAILED.
  Output run(std::span<const std::uint8_t> pixels, const std::array<std::size_t, 4>& shape) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace convnextv2
