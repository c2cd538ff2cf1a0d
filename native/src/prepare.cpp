// Resizing as Pillow does it. Each output pixel is a weighted mean of the input pixels under a filter that is scaled
// with the image; the weights are rounded to 22 bits after the point, and columns and rows are summed one after the
// other, with 8 bits in between. Only what the crop keeps is computed.

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "convnextv2/image.hpp"

// A fused multiplication and addition rounds once where Pillow rounds twice. (For GCC: -ffp-contract=off.)
#ifdef __clang__
#pragma clang fp contract(off)
#endif

namespace convnextv2 {
namespace {

constexpr int kPrecisionBits = 22;
constexpr std::size_t kChannels = 3;
// A strip of one pixel by a few thousand would become gigabytes when its short side is resized: the same limit in
// Python.
constexpr double kMaxResizedPixels = 100e6;

struct Filter {
  double (*weight)(double);
  double radius;
};

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double bilinear(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double hamming(double x) {
  x = std::fabs(x);
  if (x == 0.0) return 1.0;
  if (x >= 1.0) return 0.0;
  x *= std::numbers::pi;
  constexpr double a = 0.54F, b = 0.46F;  // in Pillow numbers of 24 bits
  return std::sin(x) / x * (a + b * std::cos(x));
}

// Keys' cubic convolution with a = -1/2.
double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= std::numbers::pi;
  return std::sin(x) / x;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

Filter filter_of(int filter) {
  switch (filter) {
    case CONVNEXTV2_LANCZOS:
      return {lanczos, 3.0};
    case CONVNEXTV2_BILINEAR:
      return {bilinear, 1.0};
    case CONVNEXTV2_BICUBIC:
      return {bicubic, 2.0};
    case CONVNEXTV2_BOX:
      return {box, 0.5};
    case CONVNEXTV2_HAMMING:
      return {hamming, 1.0};
  }
  throw Error(CONVNEXTV2_INVALID_ARGUMENT,
              "there is no filter number " + std::to_string(filter) + ": see convnextv2_filter");
}

// The weights of the input pixels from `first` on for one output pixel, as whole numbers of 2^-22.
struct Taps {
  std::size_t first;
  std::vector<std::int32_t> weights;
};

// The taps of the output pixels from `begin` to `begin + count`, where `input` pixels become `output` ones.
std::vector<Taps> taps_of(const Filter& filter, std::size_t input, std::size_t output, std::size_t begin,
                          std::size_t count) {
  const double scale = static_cast<double>(input) / static_cast<double>(output);
  const double stretch = std::max(scale, 1.0);
  const double radius = filter.radius * stretch;
  std::vector<Taps> all(count);
  std::vector<double> exact;
  for (std::size_t i = 0; i < count; ++i) {
    const double center = (static_cast<double>(begin + i) + 0.5) * scale;
    const double left = std::max(center - radius + 0.5, 0.0);
    const double right = std::min(center + radius + 0.5, static_cast<double>(input));
    const auto first = static_cast<std::size_t>(left);
    const auto size = static_cast<std::size_t>(right) - first;
    exact.resize(size);
    double sum = 0.0;
    for (std::size_t k = 0; k < size; ++k) {
      exact[k] = filter.weight((static_cast<double>(k + first) - center + 0.5) * (1.0 / stretch));
      sum += exact[k];
    }
    all[i].first = first;
    all[i].weights.resize(size);
    for (std::size_t k = 0; k < size; ++k) {
      const double weight = (sum != 0.0 ? exact[k] / sum : exact[k]) * (1 << kPrecisionBits);
      all[i].weights[k] = static_cast<std::int32_t>(weight + (weight < 0.0 ? -0.5 : 0.5));
    }
  }
  return all;
}

std::uint8_t round_to_byte(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

// The part of the resized image that is kept: its place in the whole, and the whole's size.
struct Plan {
  std::size_t width, height, left, top;
};

std::size_t margin(std::size_t whole, std::size_t part, bool halves_to_even) {
  const std::size_t both = whole - part;
  return halves_to_even ? both / 2 + (both % 4 == 3 ? 1 : 0) : both / 2;
}

Plan plan(const convnextv2_image& image, const convnextv2_preparation& how) {
  Plan result{how.width, how.height, 0, 0};
  if (!how.resizes) {
    result.width = image.width;
    result.height = image.height;
    if (image.width != how.crop_width || image.height != how.crop_height) {
      throw Error(CONVNEXTV2_WRONG_SHAPE, "the model takes images of " + std::to_string(how.crop_width) + " x " +
                                              std::to_string(how.crop_height) + " pixels as they are, not of " +
                                              std::to_string(image.width) + " x " + std::to_string(image.height));
    }
  } else if (how.short_side != 0) {
    const auto [small, large] = std::minmax(image.width, image.height);
    // Divided as numbers of 53 bits and cut to a whole number: the long side that Python computes.
    const double long_side =
        std::floor(static_cast<double>(how.short_side) * static_cast<double>(large) / static_cast<double>(small));
    if (static_cast<double>(how.short_side) * long_side > kMaxResizedPixels) {
      throw Error(CONVNEXTV2_BAD_IMAGE, "an image of " + std::to_string(image.width) + " x " +
                                            std::to_string(image.height) +
                                            " pixels is too narrow to be resized: crop it first");
    }
    const auto length = static_cast<std::size_t>(long_side);
    result.width = image.width <= image.height ? how.short_side : length;
    result.height = image.width <= image.height ? length : how.short_side;
  }
  if (how.crop_width > result.width || how.crop_height > result.height) {
    throw Error(CONVNEXTV2_INVALID_ARGUMENT, "the crop is larger than the resized image");
  }
  result.left = margin(result.width, how.crop_width, how.halves_to_even != 0);
  result.top = margin(result.height, how.crop_height, how.halves_to_even != 0);
  return result;
}

void check(const convnextv2_image& image, const convnextv2_preparation& how) {
  const auto fits = [](std::size_t side) { return side >= 1 && side <= kMaxSide; };
  if (image.pixels == nullptr || !fits(image.width) || !fits(image.height)) {
    throw Error(CONVNEXTV2_INVALID_ARGUMENT,
                "an image must have pixels, and sides of 1 to " + std::to_string(kMaxSide) + " pixels");
  }
  if ((image.pixel_bytes != 3 && image.pixel_bytes != 4) || image.row_bytes < image.width * image.pixel_bytes) {
    throw Error(CONVNEXTV2_INVALID_ARGUMENT,
                "an image must have 3 or 4 bytes a pixel and rows that are at least as long as their pixels");
  }
  const bool square = how.short_side == 0 && how.resizes;
  const auto area = static_cast<double>(how.crop_width) * static_cast<double>(how.crop_height);
  if (!fits(how.crop_width) || !fits(how.crop_height) || how.short_side > kMaxSide || area > kMaxResizedPixels ||
      (square && (!fits(how.width) || !fits(how.height)))) {
    throw Error(CONVNEXTV2_INVALID_ARGUMENT, "a preparation must have sides of 1 to " + std::to_string(kMaxSide) +
                                                 " pixels, and a crop of 10^8 at most");
  }
}

convnextv2_image part(const convnextv2_image& image, std::size_t left, std::size_t top, std::size_t width,
                      std::size_t height) {
  return {image.pixels + top * image.row_bytes + left * image.pixel_bytes, width, height, image.row_bytes,
          image.pixel_bytes};
}

// The input that taps depend on: from `first` to before `end`.
struct Range {
  std::size_t first, end;
};

Range range_of(const std::vector<Taps>& all) {
  return {all.front().first, all.back().first + all.back().weights.size()};
}

std::vector<Taps> shifted(std::vector<Taps> all, std::size_t by) {
  for (Taps& taps : all) taps.first -= by;
  return all;
}

constexpr std::int32_t kHalf = 1 << (kPrecisionBits - 1);

// Each row of the image under the taps of the columns.
Image across(const convnextv2_image& image, const std::vector<Taps>& columns) {
  Image result{columns.size(), image.height, std::vector<std::uint8_t>(columns.size() * image.height * kChannels)};
  std::uint8_t* target = result.pixels.data();
  for (std::size_t y = 0; y < image.height; ++y) {
    const std::uint8_t* row = image.pixels + y * image.row_bytes;
    for (const Taps& taps : columns) {
      const std::uint8_t* pixel = row + taps.first * image.pixel_bytes;
      std::int32_t sums[kChannels] = {kHalf, kHalf, kHalf};
      for (const std::int32_t weight : taps.weights) {
        for (std::size_t c = 0; c < kChannels; ++c) sums[c] += pixel[c] * weight;
        pixel += image.pixel_bytes;
      }
      for (const std::int32_t sum : sums) *target++ = round_to_byte(sum);
    }
  }
  return result;
}

// Each column of the image under the taps of the rows.
Image down(const convnextv2_image& image, const std::vector<Taps>& rows) {
  Image result{image.width, rows.size(), std::vector<std::uint8_t>(image.width * rows.size() * kChannels)};
  std::uint8_t* target = result.pixels.data();
  std::vector<std::int32_t> sums(image.width * kChannels);
  for (const Taps& taps : rows) {
    std::fill(sums.begin(), sums.end(), kHalf);
    const std::uint8_t* row = image.pixels + taps.first * image.row_bytes;
    for (const std::int32_t weight : taps.weights) {
      for (std::size_t x = 0; x < image.width; ++x) {
        for (std::size_t c = 0; c < kChannels; ++c) sums[x * kChannels + c] += row[x * image.pixel_bytes + c] * weight;
      }
      row += image.row_bytes;
    }
    target = std::transform(sums.begin(), sums.end(), target, round_to_byte);
  }
  return result;
}

// Whether Pillow sums the rows before the columns, which saves work where the height shrinks most.
bool rows_first(const convnextv2_image& image, const Plan& to, int pillow) {
  if (image.height <= to.height) return false;
  if (pillow < 13) return image.height > 100 * image.width;
  const auto lost_columns = static_cast<std::int64_t>(image.width) - static_cast<std::int64_t>(to.width);
  return static_cast<std::int64_t>(image.height - to.height) > 2 * lost_columns;
}

}  // namespace

convnextv2_image Image::view() const {
  if (pixels.size() != width * height * kChannels) {
    throw Error(CONVNEXTV2_INVALID_ARGUMENT, "an image must have width * height * 3 bytes");
  }
  return {pixels.data(), width, height, width * kChannels, kChannels};
}

Image prepare(const convnextv2_image& image, const convnextv2_preparation& how) {
  check(image, how);
  const Plan to = plan(image, how);
  const Filter filter = how.resizes ? filter_of(how.filter) : Filter{box, 0.5};
  const auto columns = taps_of(filter, image.width, to.width, to.left, how.crop_width);
  const auto rows = taps_of(filter, image.height, to.height, to.top, how.crop_height);
  const auto [left, right] = range_of(columns);
  const auto [top, bottom] = range_of(rows);
  const convnextv2_image used = part(image, left, top, right - left, bottom - top);
  if (rows_first(image, to, how.pillow)) {
    return across(down(used, shifted(rows, top)).view(), shifted(columns, left));
  }
  return down(across(used, shifted(columns, left)).view(), shifted(rows, top));
}

}  // namespace convnextv2
