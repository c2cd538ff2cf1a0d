import Foundation

/// A parsed JSON file, from which fields are read with errors that name them.
package enum JSONValue: Decodable, Equatable, Sendable {
    case null
    case bool(Bool)
    case integer(Int)
    case number(Double)
    case string(String)
    case array([JSONValue])
    case object([String: JSONValue])

    /// ImageNet-22k's labels take under 3 MB.
    static let mostBytes = 4_000_000

    package init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let value = try? container.decode(Bool.self) {
            self = .bool(value)
        } else if let value = try? container.decode(Int.self) {
            self = .integer(value)
        } else if let value = try? container.decode(Double.self) {
            self = .number(value)
        } else if let value = try? container.decode(String.self) {
            self = .string(value)
        } else if let value = try? container.decode([JSONValue].self) {
            self = .array(value)
        } else {
            self = .object(try container.decode([String: JSONValue].self))
        }
    }

    /// The fields of a JSON file that holds an object.
    package static func object(from file: URL) throws -> [String: JSONValue] {
        let data = try read(file, most: mostBytes)
        return try object(from: data, name: file.path)
    }

    package static func object(from data: Data, name: String) throws -> [String: JSONValue] {
        guard let value = try? JSONDecoder().decode(JSONValue.self, from: data) else {
            throw ConvNeXtV2Error.unreadable("\(name) is not valid JSON: download or write it again")
        }
        guard case .object(let fields) = value else {
            throw ConvNeXtV2Error.unreadable("\(name) must be a JSON object")
        }
        return fields
    }

    package var text: String? { if case .string(let value) = self { value } else { nil } }
    package var whole: Int? { if case .integer(let value) = self { value } else { nil } }
    package var list: [JSONValue]? { if case .array(let value) = self { value } else { nil } }
    package var fields: [String: JSONValue]? { if case .object(let value) = self { value } else { nil } }
    package var truth: Bool? { if case .bool(let value) = self { value } else { nil } }
    /// Text, or a number as text: what a class may be called.
    var label: String? { text ?? whole.map(String.init) ?? decimal.map { "\($0)" } }
    package var decimal: Double? {
        switch self {
        case .integer(let value): Double(value)
        case .number(let value): value
        default: nil
        }
    }
}

/// The content of a file, which may not have more bytes than this.
func read(_ file: URL, most: Int) throws -> Data {
    let attributes = try? FileManager.default.attributesOfItem(atPath: file.resolvingSymlinksInPath().path)
    guard let size = attributes?[.size] as? Int else {
        let folder = file.deletingLastPathComponent().path
        throw ConvNeXtV2Error.notFound("there is no \(file.lastPathComponent) in \(folder): is the path right?")
    }
    guard size <= most else {
        throw ConvNeXtV2Error.unreadable("\(file.path) has more than \(most) bytes, so it is no checkpoint's file")
    }
    do {
        return try Data(contentsOf: file)
    } catch {
        throw ConvNeXtV2Error.unreadable("\(file.path) cannot be read: \(error.localizedDescription)")
    }
}

extension [String: JSONValue] {
    /// The value of a field, or nil where it is absent or null.
    func given(_ name: String) -> JSONValue? {
        guard let value = self[name], value != .null else { return nil }
        return value
    }

    func whole(_ name: String, in range: ClosedRange<Int>) throws -> Int? {
        guard let value = given(name) else { return nil }
        guard let number = value.whole, range.contains(number) else {
            throw ConvNeXtV2Error.invalid(
                "\(name) must be a whole number from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    func wholes(_ name: String, in range: ClosedRange<Int>) throws -> [Int]? {
        guard let value = given(name) else { return nil }
        let numbers = value.list?.map(\.whole)
        guard let numbers, numbers.allSatisfy({ $0.map(range.contains) ?? false }) else {
            throw ConvNeXtV2Error.invalid(
                "\(name) must be a list of whole numbers from \(range.lowerBound) to \(range.upperBound)")
        }
        return numbers.compactMap { $0 }
    }

    func decimal(_ name: String) throws -> Double? {
        guard let value = given(name) else { return nil }
        guard let number = value.decimal, abs(number) < 3.4e38 else {
            throw ConvNeXtV2Error.invalid("\(name) must be a number that a float32 can hold")
        }
        return number
    }

    func text(_ name: String) throws -> String? {
        guard let value = given(name) else { return nil }
        guard let text = value.text else { throw ConvNeXtV2Error.invalid("\(name) must be text") }
        return text
    }
}
