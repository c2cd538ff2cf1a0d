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
        let model = try ExportedModel(folder: path("EXPORTED_FOLDER"))
        let strip = PixelImage(width: 1, height: 200_000, pixels: [UInt8](repeating: 0, count: 600_000))
        XCTAssertThrowsError(try model.prepare(strip)) { error in
            XCTAssertTrue(error.localizedDescription.contains("too narrow"))
        }
    }
}
