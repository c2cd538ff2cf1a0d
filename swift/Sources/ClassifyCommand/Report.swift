import ConvNeXtV2Core
import Foundation

/// How predictions are printed: as the Python command `classify` prints them.
package enum Report {
    private static let barWidth = 24

    /// A block for an image: its name, and a line for each label with the score as a number and as a bar.
    package static func table(_ name: String, _ predictions: [Classification]) -> String {
        let lines = predictions.map { prediction in
            let percent = String(format: "%5.1f%%", 100 * Double(prediction.score))
            return "  \(percent)  \(bar(prediction.score))  \(short(prediction.label))\n"
        }
        return "\(printable(name))\n" + lines.joined()
    }

    /// One line of JSON for an image: {"image", "predictions"}.
    package static func json(_ name: String, _ predictions: [Classification]) -> String {
        let list = predictions.map {
            "{\"label\": \(quoted($0.label)), \"score\": \(Double($0.score)), \"index\": \($0.index)}"
        }
        return "{\"image\": \(quoted(name)), \"predictions\": [\(list.joined(separator: ", "))]}\n"
    }

    /// One line of JSON for an image that could not be classified: {"image", "error"}.
    package static func json(_ name: String, error: String) -> String {
        "{\"image\": \(quoted(name)), \"error\": \(quoted(error))}\n"
    }

    private static func bar(_ score: Float) -> String {
        let eighths = Int((Double(score) * Double(barWidth * 8)).rounded(.toNearestOrEven))
        let parts = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"]
        let bar = String(repeating: "█", count: eighths / 8) + parts[eighths % 8]
        return bar + String(repeating: " ", count: barWidth - bar.count)
    }

    /// As Python's `json.dumps`: ASCII alone.
    private static func quoted(_ text: String) -> String {
        var result = "\""
        for unit in text.utf16 {
            switch unit {
            case 0x22: result += "\\\""
            case 0x5C: result += "\\\\"
            case 0x0A: result += "\\n"
            case 0x0D: result += "\\r"
            case 0x09: result += "\\t"
            case 0x08: result += "\\b"
            case 0x0C: result += "\\f"
            case 0x20...0x7E: result.unicodeScalars.append(Unicode.Scalar(UInt8(unit)))
            default: result += String(format: "\\u%04x", Int(unit))
            }
        }
        return result + "\""
    }
}
