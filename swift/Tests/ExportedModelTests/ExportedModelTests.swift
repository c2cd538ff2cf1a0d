import Foundation
import XCTest

@testable import ExportedModel

/// With EXPORTED_FOLDER, an export; IMAGE_PPM, an image; and PREPARED_RGB, the bytes that Python makes of it.
final class ExportedModelTests: XCTestCase {
    private func path(_ name: String) throws -> URL {
        guard let value = ProcessInfo.processInfo.environment[name] else { throw XCTSkip("name it in \(name)") }
        return URL(fileURLWithPath: value)
    }

    #if !canImport(ImageIO)
    func testAnImageIsPreparedAsInPython() throws {
        let model = try ExportedModel(folder: path("EXPORTED_FOLDER"))
        let prepared = try model.prepare(PixelImage(contentsOf: path("IMAGE_PPM")))
        XCTAssertEqual(prepared, [UInt8](try Data(contentsOf: path("PREPARED_RGB"))))
    }
    #endif

    func testErrors() throws {
        XCTAssertThrowsError(try ExportedModel(folder: URL(fileURLWithPath: "/nowhere"))) { error in
            XCTAssertTrue(error.localizedDescription.contains("/nowhere/model.json"))
        }
        let folder = try path("EXPORTED_FOLDER")
        let changed = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: changed, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: changed) }
        let told = try JSONSerialization.jsonObject(with: Data(contentsOf: folder.appendingPathComponent("model.json")))
        for (key, value) in [("batches", [0]), ("batches", []), ("labels", [1])] as [(String, [Any])] {
            var description = try XCTUnwrap(told as? [String: Any])
            description[key] = value
            let data = try JSONSerialization.data(withJSONObject: description)
            try data.write(to: changed.appendingPathComponent("model.json"))
            XCTAssertThrowsError(try ExportedModel(folder: changed), key)
        }
        let model = try ExportedModel(folder: folder)
        let strip = PixelImage(width: 1, height: 200_000, pixels: [UInt8](repeating: 0, count: 600_000))
        XCTAssertThrowsError(try model.prepare(strip)) { error in
            XCTAssertTrue(error.localizedDescription.contains("too narrow"))
        }
    }
}
