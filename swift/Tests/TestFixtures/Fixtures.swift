import ConvNeXtV2Core
import Foundation

/// What Python wrote, with swift/generate.py, for both to agree on.
package enum Fixtures {
    package static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("Fixtures")

    package struct Missing: Error {}

    package static func list(_ name: String) throws -> [[String: JSONValue]] {
        let data = try Data(contentsOf: folder.appendingPathComponent("\(name).json"))
        return try JSONDecoder().decode([JSONValue].self, from: data).map { try found($0.fields) }
    }

    package static func object(_ name: String) throws -> [String: JSONValue] {
        try JSONValue.object(from: folder.appendingPathComponent("\(name).json"))
    }

    /// A binary PPM file of 8 bits a channel.
    package static func image(_ name: String) throws -> PixelImage {
        let bytes = [UInt8](try Data(contentsOf: folder.appendingPathComponent("\(name).ppm")))
        let header = String(decoding: bytes.prefix(20), as: UTF8.self).split(whereSeparator: \.isWhitespace)
        let (width, height) = (try found(Int(header[1])), try found(Int(header[2])))
        return try PixelImage(width: width, height: height, pixels: bytes.suffix(width * height * 3))
    }

    /// float32 in base64.
    package static func floats(_ value: JSONValue?) throws -> [Float] {
        let data = try found(Data(base64Encoded: found(value?.text)))
        return stride(from: 0, to: data.count, by: 4).map { start in
            let bits = (0..<4).reduce(UInt32(0)) { $0 | UInt32(data[start + $1]) << (8 * UInt32($1)) }
            return Float(bitPattern: bits)
        }
    }

    /// A copy of a small checkpoint, to be damaged.
    package static func copy(_ name: String) throws -> URL {
        let copy = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.copyItem(at: folder.appendingPathComponent(name), to: copy)
        return copy
    }

    private static func found<Value>(_ value: Value?) throws -> Value {
        guard let value else { throw Missing() }
        return value
    }
}
