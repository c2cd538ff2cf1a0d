// Images in memory, and from PPM files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "convnextv2/error.hpp"

namespace convnextv2 {

// The longest side of an image that is taken, in pixels: it bounds what a small file can make this library allocate.
inline constexpr std::size_t kMaxSide = 1 << 18;

// 8 bits each of red, green and blue, row by row: width * height * 3 bytes.
struct CONVNEXTV2_API Image {
  std::size_t width = 0;
  std::size_t height = 0;
  std::vector<std::uint8_t> pixels;

  // The same image without its memory. Throws Error: INVALID_ARGUMENT where pixels has another length.
  convnextv2_image view() const;
};

// Read a binary PPM file ("P6" with 8 bits a channel). Throws Error: NOT_FOUND, BAD_IMAGE.
CONVNEXTV2_API Image read_ppm(const std::filesystem::path& path);

// Resize and crop, equal to Pillow byte for byte. Throws Error: INVALID_ARGUMENT, BAD_IMAGE, WRONG_SHAPE.
CONVNEXTV2_API Image prepare(const convnextv2_image& image, const convnextv2_preparation& preparation);

}  // namespace convnextv2
