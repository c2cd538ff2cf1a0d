import Foundation

// Text from files, made safe for a terminal and short enough for a sentence.

/// Text on one line that a terminal shows and does not obey: what it would not show becomes \x1b, \u202e, ...
package func printable(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
        let code = scalar.value
        guard isUnsafe(code) else {
            result.unicodeScalars.append(scalar)
            continue
        }
        switch code {
        case 0x0A: result += "\\n"
        case 0x0D: result += "\\r"
        case 0x09: result += "\\t"
        case ...0xFF: result += String(format: "\\x%02x", code)
        case ...0xFFFF: result += String(format: "\\u%04x", code)
        default: result += String(format: "\\U%08x", code)
        }
    }
    return result
}

/// `printable`, without its middle where it is long.
package func short(_ text: String, most: Int = 200) -> String {
    let plain = printable(text)
    return plain.count <= most ? plain : "\(plain.prefix(most / 2 - 2))...\(plain.suffix(most / 2 - 1))"
}

/// A list for a sentence: the first few, and how many more.
func some(_ names: [String], most: Int = 5) -> String {
    let more = names.count > most ? " and \(names.count - most) more" : ""
    return names.prefix(most).map { short($0) }.joined(separator: ", ") + more
}

/// What a terminal obeys or hides: controls, line separators, marks of direction, invisible characters. The joiners of
/// emoji and of Persian stay.
private func isUnsafe(_ code: UInt32) -> Bool {
    switch code {
    case 0x00...0x1F, 0x7F...0x9F, 0xAD, 0x061C, 0x180E, 0x200B, 0x200E, 0x200F, 0x2028...0x202E, 0x2060...0x206F,
        0xFEFF, 0xFFF9...0xFFFB, 0x1D173...0x1D17A, 0xE0000...0xE007F:
        return true
    default:
        return false
    }
}
