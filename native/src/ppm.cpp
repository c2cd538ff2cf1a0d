// Binary PPM files: "P6", width, height and 255 in ASCII, with comments from # to the end of a line, then the pixels.

#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "convnextv2/image.hpp"

namespace convnextv2 {
namespace {

bool is_space(int character) { return character == ' ' || (character >= '\t' && character <= '\r'); }

// The next number of the header, at most `limit`, with the one white space behind it; nothing where there is none.
std::optional<std::size_t> read_number(std::istream& file, std::size_t limit) {
  while (is_space(file.peek()) || file.peek() == '#') {
    if (file.get() == '#') file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  std::optional<std::size_t> number;
  int character = file.get();
  for (; character >= '0' && character <= '9'; character = file.get()) {
    number = number.value_or(0) * 10 + static_cast<std::size_t>(character - '0');
    if (*number > limit) return std::nullopt;
  }
  return is_space(character) ? number : std::nullopt;
}

}  // namespace

Image read_ppm(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::error_code error;
  const auto file_size = std::filesystem::file_size(path, error);  // an error for a folder
  if (!file || error) throw Error(CONVNEXTV2_NOT_FOUND, path.string() + " is not a file that can be read");

  const auto bad = [&path](const std::string& why) { return Error(CONVNEXTV2_BAD_IMAGE, path.string() + ": " + why); };
  char magic[2] = {};
  file.read(magic, 2);
  if (magic[0] != 'P' || magic[1] != '6' || !(is_space(file.peek()) || file.peek() == '#')) {
    throw bad("not a binary PPM file (P6): convert it, for example with `magick photo.jpg photo.ppm`");
  }
  const auto width = read_number(file, kMaxSide);
  const auto height = read_number(file, kMaxSide);
  const auto depth = read_number(file, 65535);
  if (!file || width.value_or(0) == 0 || height.value_or(0) == 0) {
    throw bad("its header must name a width and a height of 1 to " + std::to_string(kMaxSide) + " pixels");
  }
  if (depth != 255) throw bad("only PPM files with 8 bits a channel (a largest value of 255) are read");
  const std::size_t size = *width * *height * 3;
  const auto start = file.tellg();
  if (start < 0 || file_size - static_cast<std::uintmax_t>(start) < size) {  // before anything is allocated
    throw bad("the file ends before its last pixel");
  }
  Image image{*width, *height, std::vector<std::uint8_t>(size)};
  file.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(size));
  if (!file) throw bad("the file cannot be read to its end");
  return image;
}

}  // namespace convnextv2
