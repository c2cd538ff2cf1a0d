import SwiftUI

/// A window to drop images on, or to look through the camera: what they show, with a bar for each label.
@main
struct ClassifierApp: App {
    var body: some Scene {
        Window("ConvNeXt V2", id: "main") {
            ContentView().frame(minWidth: 480, minHeight: 600)
        }
    }
}
