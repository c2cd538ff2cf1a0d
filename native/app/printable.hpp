// Text of others, such as the names of files and labels, made safe for a terminal.
#pragma once

#include <string>
#include <string_view>

namespace convnextv2 {

// UTF-8 as it is, but for what could steer a terminal, start a line or turn the order of letters: control characters
// (C0, DEL, C1), U+2028 and U+2029, U+200E and U+200F, U+202A to U+202E, U+2066 to U+2069. These are escaped as Python
// escapes them (\n, \x1b, \u202e), and so are bytes that are not UTF-8 (\xff).
std::string printable(std::string_view text);

}  // namespace convnextv2
